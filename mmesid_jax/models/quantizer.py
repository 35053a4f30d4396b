"""Residual vector quantiser with a straight-through gradient. Source: MME-SID, section 3; Lee et
al. 2022."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.losses.mmd import squared_distances
from mmesid_jax.quantize.sinkhorn import sinkhorn


class Quantised(NamedTuple):
  """codes int32 [B, L]; quantised [B, D], the sum of the chosen code vectors with the gradient
  passed straight through to the input; residual [B, D], what is left; loss, a scalar."""

  code_BL: jax.Array
  quantised_BD: jax.Array
  residual_BD: jax.Array
  loss: jax.Array


class ResidualQuantizer(nnx.Module):
  """L codebooks of C vectors of width D.

  Level l takes the code nearest to the residual r and leaves r - v. loss = mean over levels of
  mean((sg(r) - v)^2) + commitment * mean((r - sg(v))^2).
  """

  def __init__(self, levels: int, codes: int, D: int, *, commitment: float, rngs: nnx.Rngs):
    self.codebook_LCD = nnx.Param(jax.random.normal(rngs.params(), (levels, codes, D)) / D**0.5)
    self.commitment = commitment

  def __call__(
    self, z_BD: jax.Array, *, sinkhorn_epsilon: float = 0.0, sinkhorn_iterations: int = 50
  ) -> Quantised:
    """sinkhorn_epsilon > 0: the last level is assigned by optimal transport over the batch."""
    residual_BD, codes, losses = z_BD, [], []
    levels = self.codebook_LCD.shape[0]
    for level in range(levels):
      book_CD = self.codebook_LCD[level]
      distance_BC = squared_distances(residual_BD, book_CD)
      if sinkhorn_epsilon and level == levels - 1:
        plan_BC = sinkhorn(distance_BC, epsilon=sinkhorn_epsilon, iterations=sinkhorn_iterations)
        code_B = plan_BC.argmax(1)
      else:
        code_B = distance_BC.argmin(1)
      v_BD = book_CD[code_B]
      to_code = ((jax.lax.stop_gradient(residual_BD) - v_BD) ** 2).mean()
      to_input = ((residual_BD - jax.lax.stop_gradient(v_BD)) ** 2).mean()
      losses.append(to_code + self.commitment * to_input)
      codes.append(code_B)
      residual_BD = residual_BD - jax.lax.stop_gradient(v_BD)
    quantised_BD = z_BD + jax.lax.stop_gradient(-residual_BD)
    code_BL = jnp.stack(codes, 1).astype(jnp.int32)
    return Quantised(code_BL, quantised_BD, residual_BD, sum(losses) / levels)

  def decode(self, code_BL: jax.Array) -> jax.Array:
    """[B, D] sums of the codes' vectors."""
    book_LCD = self.codebook_LCD[...]
    return book_LCD[jnp.arange(len(book_LCD)), code_BL].sum(1)
