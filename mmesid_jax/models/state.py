"""A model's parameters and tables as flat named arrays, out and in."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from mmesid_jax.errors import UserError
from mmesid_jax.models.variables import Pretrained


def _name(path) -> str:
  return ".".join(str(part) for part in path)


def tensors(model: nnx.Module) -> dict[str, np.ndarray]:
  """{"a.b.c": array} of every Variable of the model but the pretrained ones."""
  return {name: np.asarray(jax.device_get(v[...])) for name, v in named_variables(model)}


def named_variables(model: nnx.Module) -> list[tuple[str, nnx.Variable]]:
  """("a.b.c", Variable) of every Variable of the model but the pretrained ones."""
  return [(_name(path), variable) for path, variable in _own(model)]


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
  names = {_name(path) for path, _ in flat}
  if different := sorted(names ^ named.keys()):
    raise UserError(f"{source}: does not hold this model: {different[0]} is on one side only")
  for path, variable in flat:
    value = named[_name(path)]
    if value.shape != variable.shape:
      raise UserError(
        f"{source}: {_name(path)} has shape {value.shape}, the configured model {variable.shape}"
      )
    variable.set_value(jax.numpy.asarray(value))
  nnx.update(model, nnx.from_flat_state(flat))
  return model
