"""Residual vector quantizer with a straight-through gradient.

Sources: MME-SID, section 3; Lee et al. 2022.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.quantize.distances import squared_distances
from mmesid_jax.quantize.sinkhorn import sinkhorn

stop = jax.lax.stop_gradient


class QuantizerConfig(NamedTuple):
  """Numbers of levels and codes, and how code vectors learn; see `ResidualQuantizer`."""

  levels: int
  codes: int
  commitment: float = 0.25
  commitment_levels: str = "all"  # or "first"
  learning: str = "average"  # or "gradient"
  revival: float = 1.0
  sinkhorn_epsilon: float = 0.0
  sinkhorn_iterations: int = 50
  sinkhorn_first: str = "codes"  # or "samples"


class Quantized(NamedTuple):
  """Output of a quantizer for a batch."""

  code_BL: jax.Array  # int32
  quantized_BD: jax.Array  # sum of the codes' vectors; its gradient goes straight to the input
  residual_BD: jax.Array  # input - quantized
  loss: jax.Array  # scalar
  averaging: jax.Array  # scalar 0 whose gradient moves averaged codebooks


class ResidualQuantizer(nnx.Module):
  """L codebooks of C vectors of width D.

  Level l takes the code whose vector v is nearest to the residual r, and r - v is the next
  residual. loss = mean over levels of mean((sg(r) - v)^2) + commitment * mean((r - sg(v))^2), where
  sg stops the gradient. commitment_levels "first": later levels' commitment, although in the loss,
  has no gradient. So it is in the released code, where the residual after the first level is
  r - (r + sg(v - r)).

  learning "gradient" (paper): code vectors follow the first term of the loss. "average": they
  follow `averaging`, whose gradient is v - mean(r of its items), so plain gradient steps of rate a
  make them moving averages (van den Oord et al. 2017, appendix A, with the batch's own counts). A
  code without items moves, `revival` times as fast, to the residual of one item of the batch, until
  it is the nearest code of some item.
  """

  def __init__(self, config: QuantizerConfig, D: int, *, rngs: nnx.Rngs):
    shape = (config.levels, config.codes, D)
    self.codebook_LCD = nnx.Param(jax.random.normal(rngs.params(), shape) / D**0.5)
    self.config = config

  def __call__(self, z_BD: jax.Array, *, training: bool = False) -> Quantized:
    """Quantizes a batch.

    training: with config.sinkhorn_epsilon > 0, codes of the last level are assigned by optimal
    transport over the batch.
    """
    c = self.config
    residual_BD, codes, loss, averaging = z_BD, [], 0.0, jnp.zeros(())
    for level in range(c.levels):
      book_CD = self.codebook_LCD[level]
      distance_BC = squared_distances(residual_BD, book_CD)
      if training and c.sinkhorn_epsilon and level == c.levels - 1:
        plan_BC = sinkhorn(
          distance_BC,
          epsilon=c.sinkhorn_epsilon,
          iterations=c.sinkhorn_iterations,
          first=c.sinkhorn_first,
        )
        code_B = plan_BC.argmax(1)
      else:
        code_B = distance_BC.argmin(1)
      learning_CD = book_CD
      if c.learning == "average":
        learning_CD = stop(book_CD)
        averaging += _averaging_loss(book_CD, stop(residual_BD), code_B, c.revival)
      to_code = ((stop(residual_BD) - learning_CD[code_B]) ** 2).mean()
      v_BD = stop(book_CD)[code_B]
      loss += (to_code + c.commitment * ((residual_BD - v_BD) ** 2).mean()) / c.levels
      codes.append(code_B)
      residual_BD = residual_BD - v_BD
      if c.commitment_levels == "first":
        residual_BD = stop(residual_BD)
    quantized_BD = z_BD - stop(residual_BD)  # straight through
    code_BL = jnp.stack(codes, 1).astype(jnp.int32)
    return Quantized(code_BL, quantized_BD, residual_BD, loss, averaging - stop(averaging))

  def decode(self, code_BL: jax.Array) -> jax.Array:
    """Returns the sums [B, D] of the codes' vectors."""
    book_LCD = self.codebook_LCD[...]
    return book_LCD[jnp.arange(len(book_LCD)), code_BL].sum(1)


def _averaging_loss(
  book_CD: jax.Array, r_BD: jax.Array, code_B: jax.Array, revival: float
) -> jax.Array:
  """Half the squared distance of every code vector to the mean of its items, up to a constant.

  For a code without items: `revival` times that to one item of the batch, whose order is random.
  """
  count_C = jnp.zeros(len(book_CD)).at[code_B].add(1)
  used = (((r_BD - book_CD[code_B]) ** 2).sum(1) / count_C[code_B]).sum()
  some_r_CD = r_BD[jnp.arange(len(book_CD)) % len(r_BD)]
  unused = (((some_r_CD - book_CD) ** 2).sum(1) * (count_C == 0)).sum()
  return (used + revival * unused) / 2
