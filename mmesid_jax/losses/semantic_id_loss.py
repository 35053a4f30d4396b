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
  """Distance of a batch x to its reconstruction y, a scalar.

  kind: "mmd" (paper), "mse" (element mean) or "both" (their sum). bandwidths: of MMD. Raises
  ValueError for another kind.
  """
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
  quantization_weight: float,
  alignment_weight: float,
  training: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted sum of the reconstruction, quantization and alignment losses, and these three by name.

  Reconstruction and quantization are summed over modalities. Alignment compares the quantized
  collaborative vectors with those of every other modality; 0 without a collaborative modality. The
  sum also carries the gradient of averaged codebooks, which the weights do not scale. Source:
  MME-SID.

  Args:
    features: modality -> [B, V], rows of the feature tables.
    reconstruction: `kind` of `reconstruction_loss`; bandwidths: of MMD, there and in the alignment.
    alignment: "info_nce" (paper), "mmd" (an earlier commit of the released code) or "none".
    temperature: of InfoNCE.
    training: False takes the nearest code on every level, as codes are exported.

  Raises ValueError for another `reconstruction` or `alignment`.
  """
  if alignment not in ("info_nce", "mmd", "none"):
    raise ValueError(f"alignment {alignment!r}: expected info_nce, mmd or none")
  parts = {name: jnp.zeros(()) for name in ("reconstruction", "quantization", "alignment")}
  quantized, averaging = {}, jnp.zeros(())
  for modality, x_BV in features.items():
    part = model.by_modality[modality]
    x_BV = part.standardize(x_BV)
    result = part.quantizer(part.encoder(x_BV), training=training)
    quantized[modality] = result.quantized_BD
    decoded_BV = part.decoder(result.quantized_BD)
    parts["reconstruction"] += reconstruction_loss(x_BV, decoded_BV, reconstruction, bandwidths)
    parts["quantization"] += result.loss
    averaging += result.averaging
  if ANCHOR in quantized and alignment != "none":
    for modality, key_BD in quantized.items():
      if modality == ANCHOR:
        continue
      if alignment == "info_nce":
        parts["alignment"] += info_nce(quantized[ANCHOR], key_BD, temperature)
      else:
        parts["alignment"] += mmd(quantized[ANCHOR], key_BD, bandwidths)
  total = (
    reconstruction_weight * parts["reconstruction"]
    + quantization_weight * parts["quantization"]
    + alignment_weight * parts["alignment"]
    + averaging
  )
  return total, parts
