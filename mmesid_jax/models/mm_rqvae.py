"""MM-RQ-VAE: one residual-quantised autoencoder a modality, tied together by alignment. Source:
MME-SID."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.losses.contrastive import info_nce
from mmesid_jax.losses.mmd import mmd
from mmesid_jax.models.quantizer import ResidualQuantizer

ANCHOR = (
  "collaborative"  # alignment pairs it with every other modality; there is no text-visual term
)


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
  """Encoder V -> hidden -> D, quantiser, mirrored decoder."""

  def __init__(self, V: int, hidden: tuple[int, ...], quantizer: ResidualQuantizer, *, rngs):
    D = quantizer.codebook_LCD.shape[-1]
    self.encoder = MLP((V, *hidden, D), rngs=rngs)
    self.decoder = MLP((D, *reversed(hidden), V), rngs=rngs)
    self.quantizer = quantizer


class MMRQVAE(nnx.Module):
  """widths: modality -> V. Code width D, L levels of C codes."""

  def __init__(
    self,
    widths: Mapping[str, int],
    *,
    hidden: tuple[int, ...],
    D: int,
    levels: int,
    codes: int,
    commitment: float,
    rngs: nnx.Rngs,
  ):
    self.by_modality = nnx.Dict(
      {
        m: Autoencoder(
          V,
          hidden,
          ResidualQuantizer(levels, codes, D, commitment=commitment, rngs=rngs),
          rngs=rngs,
        )
        for m, V in widths.items()
      }
    )

  def encode(self, modality: str, x_BV: jax.Array) -> jax.Array:
    """Codes int32 [B, L] by the nearest code on every level, as they are exported."""
    part = self.by_modality[modality]
    return part.quantizer(part.encoder(x_BV)).code_BL


def reconstruction_loss(x_BV: jax.Array, y_BV: jax.Array, kind: str) -> jax.Array:
  """kind "mmd" (paper), "mse" (element mean) or "both" (their sum); else raises ValueError."""
  if kind not in ("mmd", "mse", "both"):
    raise ValueError(f"reconstruction {kind!r}: expected mmd, mse or both")
  parts = {"mmd": lambda: mmd(x_BV, y_BV), "mse": lambda: ((x_BV - y_BV) ** 2).mean()}
  return sum(parts[name]() for name in (("mmd", "mse") if kind == "both" else (kind,)))


def loss(
  model: MMRQVAE,
  features: Mapping[str, jax.Array],
  *,
  reconstruction: str,
  alignment: str,
  temperature: float,
  reconstruction_weight: float,
  quantisation_weight: float,
  alignment_weight: float,
  sinkhorn_epsilon: float,
  sinkhorn_iterations: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted sum of reconstruction, quantisation and alignment, and these three.

  features: modality -> [B, V]. Reconstruction and quantisation are summed over modalities.
  Alignment of the quantised collaborative vectors with those of every other modality: "info_nce"
  (paper), "mmd" (an earlier commit of the released code) or "none"; 0 without a collaborative
  modality. Source: MME-SID. Raises ValueError for another `reconstruction` or `alignment`.
  """
  if alignment not in ("info_nce", "mmd", "none"):
    raise ValueError(f"alignment {alignment!r}: expected info_nce, mmd or none")
  parts = {name: jnp.zeros(()) for name in ("reconstruction", "quantisation", "alignment")}
  quantised = {}
  for modality, x_BV in features.items():
    part = model.by_modality[modality]
    found = part.quantizer(
      part.encoder(x_BV),
      sinkhorn_epsilon=sinkhorn_epsilon,
      sinkhorn_iterations=sinkhorn_iterations,
    )
    quantised[modality] = found.quantised_BD
    decoded_BV = part.decoder(found.quantised_BD)
    parts["reconstruction"] += reconstruction_loss(x_BV, decoded_BV, reconstruction)
    parts["quantisation"] += found.loss
  if ANCHOR in quantised and alignment != "none":
    for modality, key_BD in quantised.items():
      if modality == ANCHOR:
        continue
      if alignment == "info_nce":
        parts["alignment"] += info_nce(quantised[ANCHOR], key_BD, temperature)
      else:
        parts["alignment"] += mmd(quantised[ANCHOR], key_BD)
  total = (
    reconstruction_weight * parts["reconstruction"]
    + quantisation_weight * parts["quantisation"]
    + alignment_weight * parts["alignment"]
  )
  return total, parts
