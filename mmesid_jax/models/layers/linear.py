"""Parts of all models: an affine layer, exact GELU, and dropout with an explicit key."""

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
  """y = x W (+ b) over the last axis, computed in the dtype of x; W [d_in, *d_out] is float32.

  W starts normal with standard deviation `std`, None = d_in ** -0.5; b starts at zero.
  """

  def __init__(
    self,
    d_in: int,
    d_out: int | tuple[int, ...],
    *,
    bias: bool = False,
    std: float | None = None,
    rngs: nnx.Rngs,
  ):
    d_out = d_out if isinstance(d_out, tuple) else (d_out,)
    std = d_in**-0.5 if std is None else std
    self.weight = nnx.Param(jax.random.normal(rngs.params(), (d_in, *d_out)) * std)
    self.bias = nnx.Param(jnp.zeros(d_out)) if bias else None

  def __call__(self, x: jax.Array) -> jax.Array:
    y = jnp.tensordot(x, self.weight[...].astype(x.dtype), axes=1)
    return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU, x * Phi(x), as in torch; jax's default is an approximation."""
  return jax.nn.gelu(x, approximate=False)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes elements with probability `rate` and multiplies the others by 1 / (1 - rate).

  The probability is rounded to a multiple of 2 ** -16. Without a key nothing is changed.
  """
  if key is None or rate == 0:
    return x
  # 16 random bits per element instead of 32: they are a large part of the cost of a mask.
  kept = jax.random.bits(key, x.shape, jnp.uint16) >= round(rate * 2**16)
  return jnp.where(kept, x / (1 - rate), 0)


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None] | jax.Array:
  """Splits a key into `count` keys; of None, returns `count` times None."""
  return [None] * count if key is None else jax.random.split(key, count)
