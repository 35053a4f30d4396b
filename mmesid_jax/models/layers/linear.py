"""What every model is made of: an affine layer, and dropout by key."""

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
  """y = x W (+ b) over the last axis; W [d_in, *d_out] float32, normal; no std: d_in ** -0.5.
  Computed in the dtype of x."""

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
  """The exact one, x * Phi(x), as torch has it; jax's default is an approximation."""
  return jax.nn.gelu(x, approximate=False)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes elements with probability `rate`, to the nearest 2 ** -16, and scales the rest by 1 / (1
  - rate); key None = identity."""
  if key is None or rate == 0:
    return x
  # Sixteen bits an element: drawing them is a good part of what a mask costs.
  kept = jax.random.bits(key, x.shape, jnp.uint16) >= round(rate * 2**16)
  return jnp.where(kept, x / (1 - rate), 0)


def split(key: jax.Array | None, count: int) -> list[jax.Array | None] | jax.Array:
  """`count` keys out of one; None stays None."""
  return [None] * count if key is None else jax.random.split(key, count)
