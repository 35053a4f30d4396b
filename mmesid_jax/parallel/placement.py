"""A model's parameters and tables: on the device mesh, and as flat named arrays, out and in."""

import hashlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from mmesid_jax.errors import UserError
from mmesid_jax.parallel import processes, sharding
from mmesid_jax.parallel.variables import Pretrained

ROWS = "rows"  # metadata of a Variable that has rows of zeros behind so many of its own


def flat_name(path) -> str:
  """ "a.b.c" of a path in a flat state."""
  return ".".join(str(part) for part in path)


def place(model: nnx.Module) -> None:
  """Lays every Variable out on the mesh of the context, in place; without a mesh does nothing. Of a
  model of shapes they stay shapes, and say where they would lie.

  Tables with a row an item get rows of zeros behind, until the mesh divides them: models know their
  number of items, so nothing reads these. Raises UserError for any other size that the mesh does
  not divide.
  """
  if not sharding.partitioned():
    return
  flat = nnx.to_flat_state(nnx.state(model))
  for path, variable in flat:
    name, value = flat_name(path), variable.get_value()
    axes = sharding.axes_of(name, value.ndim)
    if fill := _fill(value.shape, axes):
      variable.set_metadata(**{ROWS: len(value)})
      value = _longer(value, fill)
    check_divides(name, value.shape, axes)
    variable.set_value(sharding.put(value, axes))
  nnx.update(model, nnx.from_flat_state(flat))


def _fill(shape: tuple[int, ...], axes: sharding.Axes) -> int:
  """Rows of zeros that a table of items needs before the mesh divides it; 0 of what is none."""
  return -shape[0] % sharding.shards("items") if axes[:1] == ("items",) else 0


def _longer(value, fill: int):
  """With so many rows of zeros behind."""
  if isinstance(value, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((len(value) + fill, *value.shape[1:]), value.dtype)
  return np.pad(np.asarray(value), ((0, fill), *((0, 0),) * (value.ndim - 1)))


def agree(model: nnx.Module) -> None:
  """Raises Stop, in all processes, unless what each of them has whole of the model is the same."""
  if not processes.several():
    return
  digest = hashlib.sha256()
  for _, variable in nnx.to_flat_state(nnx.state(model)):
    value = variable.get_value()
    if not _spans_processes(value) or value.is_fully_replicated:
      digest.update(np.ascontiguousarray(value).tobytes())
  processes.agree("parameters and tables before training", digest.digest())


def _spans_processes(value) -> bool:
  return isinstance(value, jax.Array) and not value.is_fully_addressable


def check_divides(name: str, shape: tuple[int, ...], axes: sharding.Axes) -> None:
  """Raises UserError where the mesh of the context does not divide the shape; name: whose it is."""
  for size, axis in zip(shape, axes, strict=True):
    if axis:
      sharding.check_divides(f"{name} {list(shape)}: its axis {axis}", size, axis)


def tensors(model: nnx.Module) -> dict[str, np.ndarray]:
  """{"a.b.c": array} of every Variable of the model but the pretrained ones, as they were before
  `place`; with several processes all must call."""
  return {name: _whole(variable) for name, variable in named_variables(model)}


def _whole(variable: nnx.Variable) -> np.ndarray:
  value = variable.get_value()
  if _spans_processes(value):
    value = multihost_utils.process_allgather(value, tiled=True)
  return np.asarray(value)[: variable.get_metadata().get(ROWS)] if value.ndim else np.asarray(value)


def named_variables(model: nnx.Module) -> list[tuple[str, nnx.Variable]]:
  """("a.b.c", Variable) of every Variable of the model but the pretrained ones."""
  return [(flat_name(path), variable) for path, variable in _own(model)]


def _own(model: nnx.Module):
  return nnx.to_flat_state(nnx.state(model, nnx.Not(Pretrained)))


def loaded(
  build: Callable[[], nnx.Module], named: Mapping[str, np.ndarray], source: str
) -> nnx.Module:
  """The model that `build` makes, every Variable read from `named`; nothing is drawn or computed.

  Pretrained weights are left as shapes, to be filled from their checkpoint. Raises UserError when
  names or shapes differ; source says whence the tensors are.
  """
  model = nnx.eval_shape(build)
  flat = _own(model)
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
