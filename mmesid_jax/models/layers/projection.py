"""A projection of the backbone: trained or frozen, dense or quantised, with or without LoRA."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mmesid_jax.models.layers.lora import LoRA, LoRAConfig
from mmesid_jax.models.layers.weight_quantization import Quantised, dequantise, stored

# Standard deviation of every fresh weight, Hugging Face's initializer_range: what a layer adds at
# first is as small as the item vectors that it is added to, so it does not drown them.
INIT = 0.02
PRODUCT = "product"  # the name by which a remat policy knows what projections give


class Projection(nnx.Module):
  """y = x W (+ LoRA) over the last axis; W [d_in, *d_out]; computed in the dtype of x.

  weights "trained": an nnx.Param, float32, normal with std INIT. Any of storage.KINDS: frozen, to
  be filled from a checkpoint.
  """

  def __init__(
    self,
    d_in: int,
    d_out: int | tuple[int, ...],
    *,
    weights: str,
    lora: LoRAConfig | None,
    rngs: nnx.Rngs,
  ):
    d_out = d_out if isinstance(d_out, tuple) else (d_out,)
    shape = (d_in, *d_out)
    if weights == "trained":
      self.weight = nnx.Param(jax.random.normal(rngs.params(), shape) * INIT)
    else:
      self.weight = stored(shape, weights)
    self.lora = LoRA(d_in, d_out, lora, rngs=rngs) if lora else None

  def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    shape, x = x.shape[:-1], x.reshape(-1, x.shape[-1])  # one matrix: two axes would be transposed
    weight = self.weight
    if isinstance(weight, Quantised):
      y = _product(x, weight.codes[...], weight.scale[...], weight.kind)
    else:
      y = jnp.tensordot(x, weight[...].astype(x.dtype), axes=1)
    y = y if self.lora is None else y + self.lora(x, key)
    return checkpoint_name(y.reshape(*shape, *y.shape[1:]), PRODUCT)


@functools.partial(jax.checkpoint, static_argnums=3)
def _product(x: jax.Array, codes: jax.Array, scale: jax.Array, kind: str) -> jax.Array:
  """x W of a quantised W. Checkpointed, so that the backward pass makes the floats of W again:
  kept for it, those of all layers together would take what quantising saves."""
  return jnp.tensordot(x, dequantise(codes, scale, kind).astype(x.dtype), axes=1)
