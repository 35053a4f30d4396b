"""Residual vector quantiser with a straight-through gradient. Source: MME-SID, section 3; Lee et
al. 2022."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.quantize.distances import squared_distances
from mmesid_jax.quantize.sinkhorn import sinkhorn

stop = jax.lax.stop_gradient


class QuantizerConfig(NamedTuple):
  """What a codebook is: L levels of C codes, and how they learn; see `ResidualQuantizer`."""

  levels: int
  codes: int
  commitment: float = 0.25
  learning: str = "average"  # or "gradient"
  revival: float = 1.0
  sinkhorn_epsilon: float = 0.0
  sinkhorn_iterations: int = 50


class Quantised(NamedTuple):
  """codes int32 [B, L]; quantised [B, D], the sum of the chosen code vectors with the gradient
  passed straight through to the input; residual [B, D], what is left; loss, a scalar; averaging, a
  scalar of value 0 whose gradient moves averaged codebooks."""

  code_BL: jax.Array
  quantised_BD: jax.Array
  residual_BD: jax.Array
  loss: jax.Array
  averaging: jax.Array


class ResidualQuantizer(nnx.Module):
  """L codebooks of C vectors of width D.

  Level l takes the code nearest to the residual r and leaves r - v. loss = mean over levels of
  mean((sg(r) - v)^2) + commitment * mean((r - sg(v))^2).

  learning "gradient" (paper): code vectors follow the loss's first term. "average": they follow
  `averaging`, whose gradient is v - mean(its items' r), so plain steps of rate a make them moving
  averages (van den Oord et al. 2017, appendix A, with the batch's own counts); a code without items
  is drawn, `revival` times as fast, to the residual of one of the batch's items until it wins some.
  """

  def __init__(self, config: QuantizerConfig, D: int, *, rngs: nnx.Rngs):
    shape = (config.levels, config.codes, D)
    self.codebook_LCD = nnx.Param(jax.random.normal(rngs.params(), shape) / D**0.5)
    self.config = config

  def __call__(self, z_BD: jax.Array, *, training: bool = False) -> Quantised:
    """training: with config.sinkhorn_epsilon > 0 the last level is assigned by optimal transport
    over the batch."""
    c = self.config
    residual_BD, codes, loss, averaging = z_BD, [], 0.0, jnp.zeros(())
    for level in range(c.levels):
      book_CD = self.codebook_LCD[level]
      distance_BC = squared_distances(residual_BD, book_CD)
      if training and c.sinkhorn_epsilon and level == c.levels - 1:
        plan_BC = sinkhorn(
          distance_BC, epsilon=c.sinkhorn_epsilon, iterations=c.sinkhorn_iterations
        )
        code_B = plan_BC.argmax(1)
      else:
        code_B = distance_BC.argmin(1)
      learning_CD = book_CD
      if c.learning == "average":
        learning_CD = stop(book_CD)
        averaging += _averaging(book_CD, stop(residual_BD), code_B, c.revival)
      to_code = ((stop(residual_BD) - learning_CD[code_B]) ** 2).mean()
      v_BD = stop(book_CD)[code_B]
      loss += (to_code + c.commitment * ((residual_BD - v_BD) ** 2).mean()) / c.levels
      codes.append(code_B)
      residual_BD = residual_BD - v_BD
    quantised_BD = z_BD - stop(residual_BD)  # straight through
    code_BL = jnp.stack(codes, 1).astype(jnp.int32)
    return Quantised(code_BL, quantised_BD, residual_BD, loss, averaging - stop(averaging))

  def decode(self, code_BL: jax.Array) -> jax.Array:
    """[B, D] sums of the codes' vectors."""
    book_LCD = self.codebook_LCD[...]
    return book_LCD[jnp.arange(len(book_LCD)), code_BL].sum(1)


def _averaging(book_CD: jax.Array, r_BD: jax.Array, code_B: jax.Array, revival: float) -> jax.Array:
  """Half the squared distance of every code to the mean of its items, up to a constant; of a code
  without items, `revival` times that to one item of the batch, whose order is random."""
  count_C = jnp.zeros(len(book_CD)).at[code_B].add(1)
  own = (((r_BD - book_CD[code_B]) ** 2).sum(1) / count_C[code_B]).sum()
  some_CD = r_BD[jnp.arange(len(book_CD)) % len(r_BD)]
  unused = (((some_CD - book_CD) ** 2).sum(1) * (count_C == 0)).sum()
  return (own + revival * unused) / 2
