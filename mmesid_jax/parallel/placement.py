"""Puts a model's variables on the mesh in use; reads and writes them as named arrays."""

import hashlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from mmesid_jax.errors import UserError
from mmesid_jax.parallel import processes, sharding
from mmesid_jax.parallel.mesh import is_partitioned
from mmesid_jax.parallel.variables import Derived, Pretrained

ROWS = "rows"  # metadata of a padded Variable: the number of its own rows


def flat_name(path) -> str:
  """The path of a flat state as "a.b.c"."""
  return ".".join(str(part) for part in path)


def place_model(model: nnx.Module) -> None:
  """Puts every Variable on the mesh in use, in place; without a mesh does nothing.

  In an abstract model (`nnx.eval_shape`) shapes stay shapes and get their sharding. Tables with a
  row for each item are padded at the end with rows of zeros until the mesh divides them; nothing
  reads those rows, as models know their number of items. Raises UserError for any other size that
  the mesh does not divide.
  """
  if not is_partitioned():
    return
  flat = nnx.to_flat_state(nnx.state(model))
  for path, variable in flat:
    name, value = flat_name(path), variable.get_value()
    axes = sharding.logical_axes(name, value.ndim)
    if padding := _padding_rows(value.shape, axes):
      variable.set_metadata(**{ROWS: len(value)})
      value = _pad_rows(value, padding)
    check_shape_divides(name, value.shape, axes)
    variable.set_value(sharding.device_put_sharded(value, axes))
  nnx.update(model, nnx.from_flat_state(flat))


def _padding_rows(shape: tuple[int, ...], axes: sharding.Axes) -> int:
  """The number of rows by which a table of items is padded; 0 for other variables."""
  return -shape[0] % sharding.shard_count("items") if axes[:1] == ("items",) else 0


def _pad_rows(value, padding: int):
  """The array, or its shape, with `padding` rows of zeros at the end."""
  if isinstance(value, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((len(value) + padding, *value.shape[1:]), value.dtype)
  return np.pad(np.asarray(value), ((0, padding), *((0, 0),) * (value.ndim - 1)))


def check_model_equal(model: nnx.Module) -> None:
  """Raises Stop, in all processes, unless all hold the same values of unsharded variables."""
  if not processes.is_multiprocess():
    return
  digest = hashlib.sha256()
  for _, variable in nnx.to_flat_state(nnx.state(model)):
    value = variable.get_value()
    if not _spans_processes(value) or value.is_fully_replicated:
      digest.update(np.ascontiguousarray(value).tobytes())
  processes.check_equal("parameters and tables before training", digest.digest())


def _spans_processes(value) -> bool:
  return isinstance(value, jax.Array) and not value.is_fully_addressable


def check_shape_divides(name: str, shape: tuple[int, ...], axes: sharding.Axes) -> None:
  """Raises UserError, which names the variable, unless the mesh in use divides its shape evenly."""
  for size, axis in zip(shape, axes, strict=True):
    if axis:
      sharding.check_divides(f"{name} {list(shape)}: its axis {axis}", size, axis)


def model_tensors(model: nnx.Module) -> dict[str, np.ndarray]:
  """{"a.b.c": array} of the model's Variables except Pretrained and Derived ones, as before
  `place_model`.

  Arrays are whole and without padding. With several processes all must call.
  """
  return {name: _whole_array(variable) for name, variable in named_variables(model)}


def _whole_array(variable: nnx.Variable) -> np.ndarray:
  value = variable.get_value()
  if _spans_processes(value):
    value = multihost_utils.process_allgather(value, tiled=True)
  return np.asarray(value)[: variable.get_metadata().get(ROWS)] if value.ndim else np.asarray(value)


def named_variables(model: nnx.Module) -> list[tuple[str, nnx.Variable]]:
  """("a.b.c", Variable) of the model's Variables except Pretrained and Derived ones."""
  return [(flat_name(path), variable) for path, variable in _trainable_and_tables(model)]


def _trainable_and_tables(model: nnx.Module):
  return nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Any(Pretrained, Derived))))


def load_model(
  build: Callable[[], nnx.Module], named: Mapping[str, np.ndarray], source: str
) -> nnx.Module:
  """The model that `build` makes, with every Variable taken from `named`; nothing is sampled.

  Args:
    build: makes the model; it is only traced for shapes.
    named: "a.b.c" -> array, as `model_tensors` returns.
    source: where the arrays come from, for messages.

  Returns the model; Pretrained weights stay shapes, to be filled from their checkpoint, and so do
  Derived tables.
  Raises UserError where names or shapes differ.
  """
  model = nnx.eval_shape(build)
  flat = _trainable_and_tables(model)
  names = {flat_name(path) for path, _ in flat}
  if different := sorted(names ^ named.keys()):
    raise UserError(f"{source}: does not hold this model: {different[0]} is on one side only")
  for path, variable in flat:
    name, value = flat_name(path), named[flat_name(path)]
    if value.shape != variable.shape:
      raise UserError(
        f"{source}: {name} has shape {value.shape}, the configured model {variable.shape}"
      )
    variable.set_value(jax.numpy.asarray(value))
  nnx.update(model, nnx.from_flat_state(flat))
  return model
