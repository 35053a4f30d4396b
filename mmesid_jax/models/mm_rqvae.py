"""MM-RQ-VAE: one residual-quantised autoencoder a modality, tied together by alignment. Source:
MME-SID."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.models.fsq import FiniteScalarQuantizer
from mmesid_jax.models.residual_quantizer import QuantizerConfig, ResidualQuantizer
from mmesid_jax.parallel.variables import Frozen


class MLP(nnx.Module):
  """Linear layers with ReLU between, Xavier-normal weights."""

  def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs):
    start = nnx.initializers.xavier_normal()
    self.layers = nnx.List(
      [
        nnx.Linear(a, b, kernel_init=start, rngs=rngs)
        for a, b in zip(widths, widths[1:], strict=False)
      ]
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    for layer in self.layers[:-1]:
      x = jax.nn.relu(layer(x))
    return self.layers[-1](x)


class Autoencoder(nnx.Module):
  """(x - mean) / scale, encoder V -> hidden -> D, quantiser, mirrored decoder."""

  def __init__(self, V: int, hidden: tuple[int, ...], quantizer: nnx.Module, D: int, *, rngs):
    self.mean_V, self.scale = Frozen(jnp.zeros(V)), Frozen(jnp.ones(()))
    self.encoder = MLP((V, *hidden, D), rngs=rngs)
    self.decoder = MLP((D, *reversed(hidden), V), rngs=rngs)
    self.quantizer = quantizer

  def standardised(self, x_BV: jax.Array) -> jax.Array:
    """What is encoded and reconstructed."""
    return (x_BV - self.mean_V[...]) / self.scale[...]

  def encoded(self, x_BV: jax.Array) -> jax.Array:
    """[B, D], before quantisation."""
    return self.encoder(self.standardised(x_BV))


class MMRQVAE(nnx.Module):
  """widths: modality -> V. Code width D; grid: codes are cells of a fixed grid rather than learned
  vectors."""

  def __init__(
    self,
    widths: Mapping[str, int],
    *,
    hidden: tuple[int, ...],
    D: int,
    quantizer: QuantizerConfig,
    grid: bool = False,
    rngs: nnx.Rngs,
  ):
    kind = FiniteScalarQuantizer if grid else ResidualQuantizer
    self.by_modality = nnx.Dict(
      {
        m: Autoencoder(V, hidden, kind(quantizer, D, rngs=rngs), D, rngs=rngs)
        for m, V in widths.items()
      }
    )

  def encode(self, modality: str, x_BV: jax.Array) -> jax.Array:
    """Codes int32 [B, L] by the nearest code on every level, as they are exported."""
    part = self.by_modality[modality]
    return part.quantizer(part.encoded(x_BV)).code_BL
