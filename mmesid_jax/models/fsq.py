"""Finite scalar quantisation: codes are cells of a fixed grid, nothing is searched or learned of
them. Source: Mentzer et al. 2023."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.residual_quantizer import Quantised, QuantizerConfig


def digits(codes: int) -> tuple[int, ...]:
  """Values of every coordinate of a code: fours, and a two where the power of two is odd. Raises
  ValueError when `codes` is no power of two."""
  bits = codes.bit_length() - 1
  if codes < 2 or codes != 1 << bits:
    raise ValueError(f"{codes} codes: a grid of fours and twos wants a power of two")
  return (4,) * (bits // 2) + (2,) * (bits % 2)


class FiniteScalarQuantizer(nnx.Module):
  """L codes side by side, each of K coordinates that are bounded and rounded.

  z [B, D] -> Linear -> [B, L, K] -> the nearest of so many values between -1 and 1 a coordinate ->
  Linear -> [B, D]. Levels are no residuals of each other: a prefix of the codes is no coarser item.
  """

  def __init__(self, config: QuantizerConfig, D: int, *, rngs: nnx.Rngs):
    self.values = digits(config.codes)
    self.config = config
    K = len(self.values)
    self.enter = nnx.Linear(D, config.levels * K, rngs=rngs)
    self.leave = nnx.Linear(config.levels * K, D, use_bias=False, rngs=rngs)

  def __call__(self, z_BD: jax.Array, *, training: bool = False) -> Quantised:
    """`training` changes nothing; loss and averaging are 0."""
    del training
    top_K = jnp.array(self.values) - 1
    bounded_BLK = jax.nn.sigmoid(2 * self._coordinates(self.enter(z_BD))) * top_K
    digit_BLK = jnp.round(bounded_BLK)
    code_BL = (digit_BLK.astype(jnp.int32) * self._places()).sum(-1)
    passed_BLK = bounded_BLK + jax.lax.stop_gradient(digit_BLK - bounded_BLK)
    quantised_BD = self.leave((2 * passed_BLK / top_K - 1).reshape(len(z_BD), -1))
    zero = jnp.zeros(())
    return Quantised(code_BL, quantised_BD, z_BD - quantised_BD, zero, zero)

  @property
  def codebook_LCD(self) -> jax.Array:
    """[L, C, D]: what every code adds to the quantised vector."""
    grid_CK = np.stack(np.unravel_index(np.arange(math.prod(self.values)), self.values), 1)
    value_CK = 2 * grid_CK / (np.array(self.values) - 1) - 1
    leave_LKD = self.leave.kernel[...].reshape(self.config.levels, len(self.values), -1)
    return jnp.einsum("CK,LKD->LCD", jnp.asarray(value_CK, jnp.float32), leave_LKD)

  def _coordinates(self, x: jax.Array) -> jax.Array:
    return x.reshape(len(x), self.config.levels, len(self.values))

  def _places(self) -> jax.Array:
    """int32 [K]: what a digit counts in the number of its code, first coordinate slowest."""
    return jnp.array([math.prod(self.values[k + 1 :]) for k in range(len(self.values))])
