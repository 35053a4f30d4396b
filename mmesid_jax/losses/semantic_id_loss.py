"""The loss of MM-RQ-VAE: reconstruction, quantization and alignment. Source: MME-SID."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mmesid_jax.losses.info_nce import info_nce
from mmesid_jax.losses.mmd import mmd
from mmesid_jax.models.mm_rqvae import MMRQVAE

ANCHOR = "collaborative"  # aligned with every other modality; there is no text-visual term


def reconstruction_loss(
  x_BV: jax.Array, y_BV: jax.Array, kind: str, bandwidths: Sequence[float]
) -> jax.Array:
  """kind "mmd" (paper), "mse" (element mean) or "both" (their sum); else raises ValueError."""
  if kind not in ("mmd", "mse", "both"):
    raise ValueError(f"reconstruction {kind!r}: expected mmd, mse or both")
  parts = {"mmd": lambda: mmd(x_BV, y_BV, bandwidths), "mse": lambda: ((x_BV - y_BV) ** 2).mean()}
  return sum(parts[name]() for name in (("mmd", "mse") if kind == "both" else (kind,)))


def semantic_id_loss(
  model: MMRQVAE,
  features: Mapping[str, jax.Array],
  *,
  reconstruction: str,
  bandwidths: Sequence[float],
  alignment: str,
  temperature: float,
  reconstruction_weight: float,
  quantisation_weight: float,
  alignment_weight: float,
  training: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted sum of reconstruction, quantisation and alignment, and these three; the sum has the
  gradient of averaged codebooks too, whatever the weights.

  features: modality -> [B, V], rows of the tables. Reconstruction and quantisation are summed over
  modalities. Alignment of the quantised collaborative vectors with those of every other modality:
  "info_nce" (paper), "mmd" (an earlier commit of the released code) or "none"; 0 without a
  collaborative modality. training=False takes the nearest code on every level, as codes are
  exported. bandwidths: of MMD. Source: MME-SID. Raises ValueError for another `reconstruction` or
  `alignment`.
  """
  if alignment not in ("info_nce", "mmd", "none"):
    raise ValueError(f"alignment {alignment!r}: expected info_nce, mmd or none")
  parts = {name: jnp.zeros(()) for name in ("reconstruction", "quantisation", "alignment")}
  quantised, averaging = {}, jnp.zeros(())
  for modality, x_BV in features.items():
    part = model.by_modality[modality]
    x_BV = part.standardised(x_BV)
    found = part.quantizer(part.encoder(x_BV), training=training)
    quantised[modality] = found.quantised_BD
    decoded_BV = part.decoder(found.quantised_BD)
    parts["reconstruction"] += reconstruction_loss(x_BV, decoded_BV, reconstruction, bandwidths)
    parts["quantisation"] += found.loss
    averaging += found.averaging
  if ANCHOR in quantised and alignment != "none":
    for modality, key_BD in quantised.items():
      if modality == ANCHOR:
        continue
      if alignment == "info_nce":
        parts["alignment"] += info_nce(quantised[ANCHOR], key_BD, temperature)
      else:
        parts["alignment"] += mmd(quantised[ANCHOR], key_BD, bandwidths)
  total = (
    reconstruction_weight * parts["reconstruction"]
    + quantisation_weight * parts["quantisation"]
    + alignment_weight * parts["alignment"]
    + averaging
  )
  return total, parts
