"""A model's parameters and tables as flat named arrays, out and in."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from mmesid_jax.errors import UserError


def _name(path) -> str:
  return ".".join(str(part) for part in path)


def tensors(model: nnx.Module) -> dict[str, np.ndarray]:
  """{"a.b.c": array} of every Variable of the model."""
  flat = nnx.to_flat_state(nnx.state(model))
  return {_name(path): np.asarray(jax.device_get(v[...])) for path, v in flat}


def loaded(
  build: Callable[[], nnx.Module], named: Mapping[str, np.ndarray], source: str
) -> nnx.Module:
  """The model that `build` makes, every Variable read from `named`; nothing is drawn or computed.

  Raises UserError when names or shapes differ; source says whence the tensors are.
  """
  model = nnx.eval_shape(build)
  flat = nnx.to_flat_state(nnx.state(model))
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
