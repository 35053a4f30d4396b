"""Which array axis is divided over which mesh axis, and operations on arrays that are divided.

Two tables decide: RULES, from logical axes to mesh axes, and VARIABLES, from names of variables to
logical axes. Every sharding is derived from these. Without a mesh in use (parallel/mesh.py), or
with a single device, arrays stay as they are.
"""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmesid_jax.errors import UserError
from mmesid_jax.parallel.mesh import DATA, FSDP, TENSOR, is_partitioned

# Logical axis -> mesh axes; None = every device holds all of it.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
  "batch": (DATA, FSDP),  # rows of users, batches of items
  "items": (FSDP, TENSOR),  # tables with one row for each item, candidates of the softmax
  "targets": DATA,  # of scores, whose other axis is "items"
  "layer": None,
  "embed": FSDP,
  "heads": TENSOR,
  "kv_heads": TENSOR,
  "head_width": None,
  "mlp": TENSOR,
}

Axes = tuple[str | None, ...]

# Pattern of a variable's name, perhaps after that of a part of the model -> its logical axes.
# Variables that match nothing are small, and every device holds them.
VARIABLES: tuple[tuple[str, Axes], ...] = (
  (r"(identity_ID|item_ID|feature_IV\.\w+|code_IL\.\w+|id_IL|path_IL|known_IO)", ("items", None)),
  (r"(follower_IK|count_IK|unit_IW\.\w+)", ("items", None)),
  (r"(frequency_I|log_share_I|trend_I|is_new_I)", ("items",)),
  (r"items\.(hidden|out)\.weight", ("embed", None)),  # at 8B most of the trained parameters
  (r"backbone\.blocks\.attention\.q\.weight.*", ("layer", "embed", "heads", "head_width")),
  (r"backbone\.blocks\.attention\.[kv]\.weight.*", ("layer", "embed", "kv_heads", "head_width")),
  (r"backbone\.blocks\.attention\.q\.bias", ("layer", "heads", "head_width")),
  (r"backbone\.blocks\.attention\.[kv]\.bias", ("layer", "kv_heads", "head_width")),
  (r"backbone\.blocks\.attention\.out\.weight.*", ("layer", "heads", "embed")),
  (r"backbone\.blocks\.mlp\.(gate|up)\.weight.*", ("layer", "embed", "mlp")),
  (r"backbone\.blocks\.mlp\.down\.weight.*", ("layer", "mlp", "embed")),
)

# Letter in the name of a batch's array -> logical axis.
LETTERS = {"R": "batch", "B": "batch"}


def logical_axes(name: str, ndim: int) -> Axes:
  """The logical axes of the variable of that name. Raises ValueError where two patterns match."""
  matches = [axes for pattern, axes in VARIABLES if re.fullmatch(rf"(.+\.)?{pattern}", name)]
  if len(matches) > 1:
    raise ValueError(f"{name}: {len(matches)} patterns match; expected at most one")
  return matches[0] if matches else (None,) * ndim


def mesh_axes(axis: str) -> tuple[str, ...]:
  """The mesh axes that divide a logical axis."""
  names = RULES[axis]
  return names if isinstance(names, tuple) else () if names is None else (names,)


def shard_count(axis: str) -> int:
  """The number of parts into which the mesh in use divides a logical axis."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[name] for name in mesh_axes(axis)) if is_partitioned() else 1


def check_divides(label: str, size: int, axis: str) -> None:
  """Raises UserError, which begins with `label`, unless the mesh in use divides `size` evenly."""
  if size % (parts := shard_count(axis)):
    names = " * ".join(f"mesh.{name}" for name in mesh_axes(axis))
    near = size - size % parts or parts
    raise UserError(
      f"{label}={size} does not divide by {names} = {parts}; {near} would, or a smaller mesh"
    )


def partition_spec(*axes: str | None) -> PartitionSpec:
  """The PartitionSpec of an array with these logical axes; None = whole on every device."""
  names = [None if axis is None else RULES[axis] for axis in axes]
  while names and names[-1] is None:  # the form of jit's outputs; another form compiles again
    names.pop()
  return PartitionSpec(*names)


def named_sharding(axes: Axes) -> NamedSharding:
  """The sharding of an array with these logical axes on the mesh in use."""
  mesh = jax.sharding.get_mesh()
  mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
  return NamedSharding(mesh, partition_spec(*axes))


def shardings_of(tree):
  """The tree with every array replaced by its sharding."""
  return jax.tree.map(lambda x: x.sharding, tree)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """x with the sharding of its logical axes, inside jit."""
  return jax.lax.with_sharding_constraint(x, partition_spec(*axes)) if is_partitioned() else x


def device_put_sharded(
  x: np.ndarray | jax.Array | jax.ShapeDtypeStruct, axes: Axes
) -> jax.Array | jax.ShapeDtypeStruct:
  """Puts an array, which every process has whole, on the mesh in use.

  Each process sends only the parts of its own devices. A ShapeDtypeStruct stays one, with the
  sharding that the array would have.
  """
  sharding = named_sharding(axes)
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
    return x
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def device_put_batch(batch):
  """Puts a batch's arrays on the mesh in use; returns them as they are without one.

  Axes follow from names: the part after the last "_" has a letter for each axis, axes before those
  stack several batches. An array without a name is a batch of B items. An axis that the mesh does
  not divide evenly is whole on every device.
  """
  if not is_partitioned():
    return batch

  def put_leaf(path, x):
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    letters = names[-1].rpartition("_")[2] if names else "B"
    axes = (None,) * (x.ndim - len(letters)) + tuple(map(LETTERS.get, letters))
    divided = (None if a and n % shard_count(a) else a for n, a in zip(x.shape, axes, strict=True))
    return device_put_sharded(x, tuple(divided))

  return jax.tree_util.tree_map_with_path(put_leaf, batch)


def lookup_rows(table: jax.Array, index: jax.Array, axis: str = "items") -> jax.Array:
  """table[index], where the table's rows are divided by `axis`; the result is whole everywhere.

  Every device looks up the rows that it holds and adds 0 for the others, so only the selected rows
  are sent between devices, never the table.
  """
  if shard_count(axis) == 1:
    return table[index]
  names = mesh_axes(axis)

  def lookup_local(rows, index):
    position = index - jax.lax.axis_index(names) * len(rows)
    is_local = (position >= 0) & (position < len(rows))
    selected = rows[jnp.where(is_local, position, 0)]
    is_local = is_local.reshape(is_local.shape + (1,) * (selected.ndim - is_local.ndim))
    return jax.lax.psum(jnp.where(is_local, selected, 0), names)

  rows = partition_spec(axis, *(None,) * (table.ndim - 1))
  in_specs, out_specs = (rows, partition_spec()), partition_spec()
  return jax.shard_map(lookup_local, in_specs=in_specs, out_specs=out_specs)(table, index)


def pick_columns(x_QI: jax.Array, index_Q: jax.Array) -> jax.Array:
  """x[q, index[q]], [Q], where the columns are divided by "items"; no device needs all of them."""
  return gather_columns(x_QI, index_Q[:, None])[:, 0]


def gather_columns(x_QI: jax.Array, index_QA: jax.Array) -> jax.Array:
  """x[q, index[q, a]], [Q, A], where the columns are divided by "items"; as `pick_columns`."""
  if x_QI.shape[1] % shard_count("items") or shard_count("items") == 1:
    return jnp.take_along_axis(x_QI, index_QA, axis=1)
  names = mesh_axes("items")

  def gather_local(x_QI, index_QA):
    place_QA = index_QA - jax.lax.axis_index(names) * x_QI.shape[1]
    is_local = (place_QA >= 0) & (place_QA < x_QI.shape[1])
    value_QA = jnp.take_along_axis(x_QI, jnp.where(is_local, place_QA, 0), axis=1)
    return jax.lax.psum(jnp.where(is_local, value_QA, 0), names)

  rows = "targets" if len(x_QI) % shard_count("targets") == 0 else None
  return jax.shard_map(
    gather_local,
    in_specs=(partition_spec(rows, "items"), partition_spec(rows)),
    out_specs=partition_spec(rows),
  )(x_QI, index_QA)


def top_k(x_QI: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """jax.lax.top_k, [Q, k] values and columns, where the columns are divided by "items".

  Every device sends only the k best of its own columns. Columns that the mesh does not divide
  evenly, as those of scores that no table of items gave, are whole on every device.
  """
  if x_QI.shape[1] % shard_count("items") or shard_count("items") == 1:
    return jax.lax.top_k(x_QI, k)
  names = mesh_axes("items")

  def top_k_local(x_QI):
    value_QA, column_QA = jax.lax.top_k(x_QI, min(k, x_QI.shape[1]))
    column_QA += jax.lax.axis_index(names) * x_QI.shape[1]
    value_QE, column_QE = (
      jax.lax.all_gather(x_QA, names, axis=1, tiled=True) for x_QA in (value_QA, column_QA)
    )
    value_QA, position_QA = jax.lax.top_k(value_QE, k)
    return value_QA, jnp.take_along_axis(column_QE, position_QA, axis=1)

  rows = "targets" if len(x_QI) % shard_count("targets") == 0 else None
  # The gathered values are equal on all devices, which shard_map cannot infer: check_vma=False.
  return jax.shard_map(
    top_k_local,
    in_specs=partition_spec(rows, "items"),
    out_specs=partition_spec(rows),
    check_vma=False,
  )(x_QI)
