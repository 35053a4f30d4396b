"""Which axis of a parameter lies on which axis of the device mesh: one table, edited here only."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# logical axis -> mesh axis; None = every device holds all of it
RULES = {
  "layer": None,
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_width": None,
  "mlp": "tensor",
  "norm": None,
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """A mesh of data * fsdp * tensor devices, axes as in MESH_AXES; by default one device."""
  shape = (data, fsdp, tensor)
  devices = devices or jax.devices()[: data * fsdp * tensor]
  return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def sharding(mesh: Mesh, axes: tuple[str, ...]) -> NamedSharding:
  """Where an array with these logical axes lies on the mesh."""
  return NamedSharding(mesh, PartitionSpec(*(RULES[axis] for axis in axes)))
