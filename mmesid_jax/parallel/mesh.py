"""Device meshes: how one is made from config.mesh, and how code asks about the mesh in use.

The mesh in use is jax's own context mesh (`jax.set_mesh`, here `use_mesh`), not an argument: every
sharding constraint in a model would otherwise need it passed down, although the trace of a jitted
function knows it. It decides where arrays are stored, which collectives run, and whether tables
are padded (`placement.place_model`). It changes results only by float rounding, and by dropout
masks, which are sampled for each device. These places set it, and no other:

  pipeline         config.mesh, for training and evaluation
  planning         the mesh of a described or abstract machine
  callers of `serving.Recommender`, tests and benchmarks, for themselves

Without a mesh, or with a single device, everything stays on one device. The names of the mesh axes
are in `parallel.mesh_axes`, and nowhere else.
"""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from mmesid_jax.errors import UserError
from mmesid_jax.parallel.mesh_axes import MESH_AXES

DATA, FSDP, TENSOR = MESH_AXES  # copies of the model, shards of its parameters, parts of its layers
_AXIS_TYPES = (AxisType.Auto,) * len(MESH_AXES)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """A mesh of data * fsdp * tensor devices, axes as in MESH_AXES; by default one device."""
  shape = (data, fsdp, tensor)
  devices = devices or jax.devices()[: math.prod(shape)]
  return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=_AXIS_TYPES)


def parse_mesh(numbers: Sequence[str]) -> dict[str, int]:
  """config.mesh from one number for each axis, as --mesh has them. Raises UserError."""
  if len(numbers) != len(MESH_AXES) or not all(
    re.fullmatch(r"-1|[1-9][0-9]{0,5}", n) for n in numbers
  ):
    raise UserError(
      f"--mesh={','.join(numbers)}: expected devices on the axes {', '.join(MESH_AXES)}, "
      "as in 1,-1,1"
    )
  return dict(zip(MESH_AXES, map(int, numbers), strict=True))


def mesh_shape(requested: Mapping[str, int], devices: int) -> dict[str, int]:
  """The number of devices on every axis of MESH_AXES; -1 becomes what the other axes leave.

  Args:
    requested: config.mesh.
    devices: the number of devices that there are.

  Raises UserError for more devices than there are, and where -1 cannot be filled in.
  """
  open_axes = [axis for axis in MESH_AXES if requested[axis] == -1]
  fixed = math.prod(requested[axis] for axis in MESH_AXES if requested[axis] != -1)
  flags = " ".join(f"--config.mesh.{axis}={requested[axis]}" for axis in MESH_AXES)
  if len(open_axes) > 1:
    raise UserError(f"{flags}: -1, what the others leave, can stand on one axis only")
  if fixed > devices or (open_axes and devices % fixed):
    wanted = f"a multiple of {fixed}" if open_axes else fixed
    raise UserError(f"{flags}: takes {wanted} devices, there are {devices}")
  return {a: devices // fixed if requested[a] == -1 else requested[a] for a in MESH_AXES}


def mesh_from_config(requested: Mapping[str, int]) -> Mesh:
  """The mesh of config.mesh over the devices of all processes, the first ones if it takes fewer.

  Raises UserError as `mesh_shape` does, and where a process would be left without a device.
  """
  mesh = make_mesh(**mesh_shape(requested, jax.device_count()))
  if idle := set(range(jax.process_count())) - {d.process_index for d in mesh.devices.flat}:
    raise UserError(
      f"--config.mesh takes {mesh.size} of {jax.device_count()} devices, so process {min(idle)} "
      "would have none; set one axis to -1, or start fewer processes"
    )
  return mesh


def use_mesh(mesh: Mesh):
  """Context in which `mesh` is the mesh in use; a single device needs none."""
  return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def use_mesh_shape(shape: Mapping[str, int]):
  """Context of an abstract mesh: shardings follow from it, no devices are needed, no array fits."""
  sizes = tuple(shape[axis] for axis in MESH_AXES)
  mesh = AbstractMesh(sizes, MESH_AXES, axis_types=_AXIS_TYPES)
  return jax.sharding.use_abstract_mesh(mesh)


def is_partitioned() -> bool:
  """Whether the mesh in use has more than one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def device_count() -> int:
  """The number of devices of the mesh in use; 1 without one."""
  return jax.sharding.get_abstract_mesh().size if is_partitioned() else 1


def target_platform() -> str:
  """The platform that code is compiled for: "cpu", "gpu" or "tpu".

  That of the devices of the mesh in use; without one, that of jax's default devices.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform
