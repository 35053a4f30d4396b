"""What lies where on the device mesh: one table from logical axes to mesh axes, one from names of
variables to logical axes; every sharding is derived from these two.

The mesh is the one of the context (`jax.set_mesh`). Without one, or with a single device, what is
laid out here stays as it is.
"""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mmesid_jax.config.rules import MESH_AXES
from mmesid_jax.errors import UserError

# Logical axis -> mesh axes; None = every device holds all of it.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
  "batch": ("data", "fsdp"),  # rows of users, batches of items
  "items": ("fsdp", "tensor"),  # rows of tables with one an item, candidates of the softmax
  "targets": "data",  # of scores, whose other axis is "items"
  "layer": None,
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_width": None,
  "mlp": "tensor",
}

Axes = tuple[str | None, ...]

# Pattern of a variable's whole name -> its logical axes. What nothing matches is small: every
# device holds it.
VARIABLES: tuple[tuple[str, Axes], ...] = (
  (r"(.+\.)?(identity_ID|item_ID|feature_IV\.\w+|code_IL\.\w+|known_IS)", ("items", None)),
  (r"(.+\.)?frequency_I", ("items",)),
  (r"items\.(hidden|out)\.weight", ("embed", None)),  # at 8B most of what is trained
  (r"backbone\.blocks\.attention\.q\.weight.*", ("layer", "embed", "heads", "head_width")),
  (r"backbone\.blocks\.attention\.[kv]\.weight.*", ("layer", "embed", "kv_heads", "head_width")),
  (r"backbone\.blocks\.attention\.out\.weight.*", ("layer", "heads", "embed")),
  (r"backbone\.blocks\.mlp\.(gate|up)\.weight.*", ("layer", "embed", "mlp")),
  (r"backbone\.blocks\.mlp\.down\.weight.*", ("layer", "mlp", "embed")),
)

# Letter of an array's name -> logical axis, for what batches hold.
LETTERS = {"R": "batch", "B": "batch"}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """A mesh of data * fsdp * tensor devices, axes as in MESH_AXES; by default one device."""
  shape = (data, fsdp, tensor)
  devices = devices or jax.devices()[: data * fsdp * tensor]
  return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def parse_mesh(numbers: Sequence[str]) -> dict[str, int]:
  """As config.mesh has it, of one number an axis. Raises UserError."""
  if len(numbers) != len(MESH_AXES) or not all(re.fullmatch(r"-1|[1-9]\d*", n) for n in numbers):
    raise UserError(
      f"--mesh={','.join(numbers)}: expected devices on the axes {', '.join(MESH_AXES)}, "
      "as in 1,-1,1"
    )
  return dict(zip(MESH_AXES, map(int, numbers), strict=True))


def mesh_shape(asked: Mapping[str, int], devices: int) -> dict[str, int]:
  """Devices on every axis of MESH_AXES, -1 filled in with what the others leave of `devices`.
  Raises UserError for more than there are, or what -1 cannot fill."""
  open_axes = [axis for axis in MESH_AXES if asked[axis] == -1]
  fixed = math.prod(asked[axis] for axis in MESH_AXES if asked[axis] != -1)
  shown = " ".join(f"--config.mesh.{axis}={asked[axis]}" for axis in MESH_AXES)
  if len(open_axes) > 1:
    raise UserError(f"{shown}: -1, what the others leave, can stand on one axis only")
  if fixed > devices or (open_axes and devices % fixed):
    wanted = f"a multiple of {fixed}" if open_axes else fixed
    raise UserError(f"{shown}: takes {wanted} devices, there are {devices}")
  return {axis: devices // fixed if asked[axis] == -1 else asked[axis] for axis in MESH_AXES}


def mesh_of(asked: Mapping[str, int]) -> Mesh:
  """The mesh that config.mesh = asked describes, over the devices of all processes; where it takes
  fewer, over the first. Raises UserError where that leaves a process without any."""
  shape = mesh_shape(asked, jax.device_count())
  mesh = make_mesh(**shape)
  if idle := set(range(jax.process_count())) - {d.process_index for d in mesh.devices.flat}:
    raise UserError(
      f"--config.mesh takes {mesh.size} of {jax.device_count()} devices, so process {min(idle)} "
      "would have none; set one axis to -1, or start fewer processes"
    )
  return mesh


def on(mesh: Mesh):
  """Context in which the mesh is the one of this module; a single device needs none."""
  return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def without_devices(shape: Mapping[str, int]):
  """Context of a mesh of that shape, axes as in MESH_AXES, for which no devices are needed: every
  rule here applies, and nothing can be put on it."""
  sizes = tuple(shape[axis] for axis in MESH_AXES)
  mesh = AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))
  return jax.sharding.use_abstract_mesh(mesh)


def check_divides(what: str, size: int, axis: str) -> None:
  """Raises UserError, about `what`, where the mesh of the context does not divide an axis of that
  size."""
  if size % (parts := shards(axis)):
    names = " * ".join(f"mesh.{name}" for name in mesh_axes(axis))
    near = size - size % parts or parts
    raise UserError(
      f"{what}={size} does not divide by {names} = {parts}; {near} would, or a smaller mesh"
    )


def partitioned() -> bool:
  """Whether the mesh of the context has more than one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def devices() -> int:
  """How many devices the mesh of the context has; 1 without one."""
  return jax.sharding.get_abstract_mesh().size if partitioned() else 1


def platform() -> str:
  """What it is compiled for, "cpu", "gpu" or "tpu": what the devices of the context's mesh are, and
  without one those that jax takes by default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def shards(axis: str) -> int:
  """Into how many parts the mesh of the context cuts a logical axis."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[name] for name in mesh_axes(axis)) if partitioned() else 1


def mesh_axes(axis: str) -> tuple[str, ...]:
  """The mesh axes that a logical axis lies on."""
  names = RULES[axis]
  return names if isinstance(names, tuple) else () if names is None else (names,)


def spec(*axes: str | None) -> PartitionSpec:
  """Of an array with these logical axes; None = whole on every device."""
  names = [None if axis is None else RULES[axis] for axis in axes]
  while names and names[-1] is None:  # as jit says it of what it gives back, or it compiles again
    names.pop()
  return PartitionSpec(*names)


def sharding(axes: Axes) -> NamedSharding:
  """Where an array with these logical axes lies on the mesh of the context."""
  mesh = jax.sharding.get_mesh()
  return NamedSharding(jax.sharding.get_abstract_mesh() if mesh.empty else mesh, spec(*axes))


def axes_of(name: str, ndim: int) -> Axes:
  """The logical axes of the variable of that name. Raises ValueError where two patterns match."""
  found = [axes for pattern, axes in VARIABLES if re.fullmatch(pattern, name)]
  if len(found) > 1:
    raise ValueError(f"{name}: {len(found)} patterns match; expected one at the most")
  return found[0] if found else (None,) * ndim


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """x, laid out by its logical axes from here on."""
  return jax.lax.with_sharding_constraint(x, spec(*axes)) if partitioned() else x


def lookup(table: jax.Array, index: jax.Array, axis: str = "items") -> jax.Array:
  """table[index], where `axis` cuts the table's rows; the result is whole on every device.

  A device looks up what it holds and adds 0 for the rest: the rows that are asked for travel, the
  table never does.
  """
  if shards(axis) == 1:
    return table[index]
  names = mesh_axes(axis)

  def local(rows, index):
    place = index - jax.lax.axis_index(names) * len(rows)
    here = (place >= 0) & (place < len(rows))
    found = rows[jnp.where(here, place, 0)]
    here = here.reshape(here.shape + (1,) * (found.ndim - here.ndim))
    return jax.lax.psum(jnp.where(here, found, 0), names)

  rows = spec(axis, *(None,) * (table.ndim - 1))
  return jax.shard_map(local, in_specs=(rows, spec()), out_specs=spec())(table, index)


def pick(x_QI: jax.Array, index_Q: jax.Array) -> jax.Array:
  """x[q, index[q]], [Q], where "items" cuts the columns: no device needs them all."""
  if shards("items") == 1:
    return jnp.take_along_axis(x_QI, index_Q[:, None], axis=1)[:, 0]
  return jnp.where(jnp.arange(x_QI.shape[1]) == index_Q[:, None], x_QI, 0).sum(1)


def top_k(x_QI: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """jax.lax.top_k, [Q, k] values and columns, where "items" cuts the columns: each device hands on
  the best of its own only."""
  if shards("items") == 1:
    return jax.lax.top_k(x_QI, k)
  names = mesh_axes("items")

  def local(x_QN):
    value_QK, column_QK = jax.lax.top_k(x_QN, min(k, x_QN.shape[1]))
    column_QK += jax.lax.axis_index(names) * x_QN.shape[1]
    value_QX, column_QX = (
      jax.lax.all_gather(x_QK, names, axis=1, tiled=True) for x_QK in (value_QK, column_QK)
    )
    value_QK, place_QK = jax.lax.top_k(value_QX, k)
    return value_QK, jnp.take_along_axis(column_QX, place_QK, axis=1)

  # What is gathered is the same everywhere, which the types of shard_map do not know.
  rows = "targets" if len(x_QI) % shards("targets") == 0 else None
  best = jax.shard_map(local, in_specs=spec(rows, "items"), out_specs=spec(rows), check_vma=False)
  return best(x_QI)


def put(
  x: np.ndarray | jax.Array | jax.ShapeDtypeStruct, axes: Axes
) -> jax.Array | jax.ShapeDtypeStruct:
  """The array, which every process has, on the mesh of the context; a process sends its own
  devices' parts only. A shape stays one, and says where it would lie."""
  where = sharding(axes)
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(where, x.ndim):
    return x
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, where, lambda part: x[part])


def of(tree):
  """The shardings of a tree's arrays."""
  return jax.tree.map(lambda x: x.sharding, tree)


def put_batch(batch):
  """A batch's arrays on the mesh of the context; as they are without one.

  Axes follow from names: the part behind the last "_" has a letter an axis, those before are of
  several batches; an array without a name is one of B items. An axis that the mesh does not divide
  is whole on every device.
  """
  if not partitioned():
    return batch

  def of_leaf(path, x):
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    letters = names[-1].rpartition("_")[2] if names else "B"
    axes = (None,) * (x.ndim - len(letters)) + tuple(map(LETTERS.get, letters))
    divided = (None if a and n % shards(a) else a for n, a in zip(x.shape, axes, strict=True))
    return put(x, tuple(divided))

  return jax.tree_util.tree_map_with_path(of_leaf, batch)
