"""Finite scalar quantization: codes are cells of a fixed grid, which is not searched or learned.

Source: Mentzer et al. 2023.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.residual_quantizer import Quantized, QuantizerConfig


def coordinate_sizes(codes: int) -> tuple[int, ...]:
  """Number of values of every coordinate of a code: fours, and a two if the exponent of 2 is odd.

  Raises ValueError when `codes` is not a power of two.
  """
  bits = codes.bit_length() - 1
  if codes < 2 or codes != 1 << bits:
    raise ValueError(f"{codes} codes: a grid of fours and twos needs a power of two")
  return (4,) * (bits // 2) + (2,) * (bits % 2)


class FiniteScalarQuantizer(nnx.Module):
  """L independent codes, each of W coordinates that are bounded and rounded.

  z [B, D] -> Linear -> [B, L, W] -> the nearest of a coordinate's values, evenly spaced from -1 to
  1 -> Linear -> [B, D]. Levels do not quantize residuals: a prefix of an item's codes is not a
  coarser description of it.
  """

  def __init__(self, config: QuantizerConfig, D: int, *, rngs: nnx.Rngs):
    self.values = coordinate_sizes(config.codes)
    self.config = config
    W = len(self.values)
    self.enter = nnx.Linear(D, config.levels * W, rngs=rngs)
    self.leave = nnx.Linear(config.levels * W, D, use_bias=False, rngs=rngs)

  def __call__(self, z_BD: jax.Array, *, training: bool = False) -> Quantized:
    """Quantizes a batch; `training` changes nothing, loss and averaging are 0."""
    del training
    top_W = jnp.array(self.values) - 1
    bounded_BLW = jax.nn.sigmoid(2 * self._coordinates(self.enter(z_BD))) * top_W
    digit_BLW = jnp.round(bounded_BLW)
    code_BL = (digit_BLW.astype(jnp.int32) * self._place_values()).sum(-1)
    straight_through_BLW = bounded_BLW + jax.lax.stop_gradient(digit_BLW - bounded_BLW)
    quantized_BD = self.leave((2 * straight_through_BLW / top_W - 1).reshape(len(z_BD), -1))
    zero = jnp.zeros(())
    return Quantized(code_BL, quantized_BD, z_BD - quantized_BD, zero, zero)

  @property
  def codebook_LCD(self) -> jax.Array:
    """Vectors [L, C, D] that codes add to the quantized vector."""
    grid_CW = np.stack(np.unravel_index(np.arange(math.prod(self.values)), self.values), 1)
    value_CW = 2 * grid_CW / (np.array(self.values) - 1) - 1
    leave_LWD = self.leave.kernel[...].reshape(self.config.levels, len(self.values), -1)
    return jnp.einsum("CW,LWD->LCD", jnp.asarray(value_CW, jnp.float32), leave_LWD)

  def _coordinates(self, x: jax.Array) -> jax.Array:
    return x.reshape(len(x), self.config.levels, len(self.values))

  def _place_values(self) -> jax.Array:
    """Place values int32 [W] of the coordinates in a code's number; the first varies slowest."""
    return jnp.array([math.prod(self.values[k + 1 :]) for k in range(len(self.values))])
