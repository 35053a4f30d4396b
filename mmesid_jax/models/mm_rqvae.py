"""MM-RQ-VAE: one residual-quantized autoencoder per modality. Source: MME-SID."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.models.fsq import FiniteScalarQuantizer
from mmesid_jax.models.residual_quantizer import QuantizerConfig, ResidualQuantizer
from mmesid_jax.parallel.variables import Frozen


class MLP(nnx.Module):
  """Linear layers with Xavier-normal weights and ReLU between them; widths: input to output."""

  def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs):
    init = nnx.initializers.xavier_normal()
    self.layers = nnx.List(
      [
        nnx.Linear(a, b, kernel_init=init, rngs=rngs)
        for a, b in zip(widths, widths[1:], strict=False)
      ]
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    for layer in self.layers[:-1]:
      x = jax.nn.relu(layer(x))
    return self.layers[-1](x)


class Autoencoder(nnx.Module):
  """(x - mean) / scale, encoder V -> hidden -> D, quantizer, mirrored decoder.

  mean_V and scale are 0 and 1 until the caller sets them.
  """

  def __init__(self, V: int, hidden: tuple[int, ...], quantizer: nnx.Module, D: int, *, rngs):
    self.mean_V, self.scale = Frozen(jnp.zeros(V)), Frozen(jnp.ones(()))
    self.encoder = MLP((V, *hidden, D), rngs=rngs)
    self.decoder = MLP((D, *reversed(hidden), V), rngs=rngs)
    self.quantizer = quantizer

  def standardize(self, x_BV: jax.Array) -> jax.Array:
    """Returns (x - mean) / scale, which is what is encoded and reconstructed."""
    return (x_BV - self.mean_V[...]) / self.scale[...]

  def encode(self, x_BV: jax.Array) -> jax.Array:
    """Returns vectors [B, D] before quantization."""
    return self.encoder(self.standardize(x_BV))


class MMRQVAE(nnx.Module):
  """One autoencoder per modality.

  Args:
    widths: modality -> V, the width of its features.
    hidden: widths of the encoder's hidden layers.
    D: width of code vectors.
    quantizer: numbers of levels and codes, and how codes learn.
    grid: codes are cells of a fixed grid instead of learned vectors.
  """

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
    build_quantizer = FiniteScalarQuantizer if grid else ResidualQuantizer
    self.by_modality = nnx.Dict(
      {
        m: Autoencoder(V, hidden, build_quantizer(quantizer, D, rngs=rngs), D, rngs=rngs)
        for m, V in widths.items()
      }
    )

  def encode(self, modality: str, x_BV: jax.Array) -> jax.Array:
    """Returns codes int32 [B, L], the nearest code on every level, as they are exported."""
    part = self.by_modality[modality]
    return part.quantizer(part.encode(x_BV)).code_BL
