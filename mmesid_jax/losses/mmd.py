"""Maximum mean discrepancy (MMD) between two batches."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmesid_jax.quantize.distances import squared_distances


def off_diagonal_mean(x_BB: jax.Array) -> jax.Array:
  """Mean of the elements off the diagonal, i != j."""
  B = len(x_BB)
  return (x_BB.sum() - jnp.trace(x_BB)) / (B * (B - 1))


def mmd(x_BV: jax.Array, y_BV: jax.Array, bandwidths: Sequence[float] = (0.5,)) -> jax.Array:
  """Squared MMD with a Gaussian kernel k(a, b) = exp(-|a - b|^2 / (2 s^2)), or the mean of several.

  s^2 = bandwidth * mean squared distance over all (2B)^2 pairs of the pooled batch, a constant for
  the gradient. Unbiased within batches, plain mean across. It compares distributions: permuting a
  batch changes nothing. The released code has one kernel and adds the constant 2 / (B - 1).
  Sources: MME-SID, reconstruction loss; Gretton et al. 2012, Lemma 6. O(B^2 + B V) memory, never a
  (2B, 2B, V) tensor.

  Returns a float32 scalar. Raises ValueError when the batches differ in shape or hold fewer than 2
  rows.
  """
  if x_BV.shape != y_BV.shape or len(x_BV) < 2:
    raise ValueError(f"mmd needs two equal batches of >= 2 rows, got {x_BV.shape} and {y_BV.shape}")
  x_BV, y_BV = x_BV.astype(jnp.float32), y_BV.astype(jnp.float32)
  # Distances do not depend on the origin; float32 products of points far from it lose digits.
  center_V = jax.lax.stop_gradient((x_BV.mean(0) + y_BV.mean(0)) / 2)
  x_BV, y_BV = x_BV - center_V, y_BV - center_V
  # Three blocks of the pooled matrix: the fourth is the third's transpose. A block of a batch that
  # is data has no gradient.
  xx_BB, yy_BB = squared_distances(x_BV, x_BV), squared_distances(y_BV, y_BV)
  xy_BB = squared_distances(x_BV, y_BV)
  mean = (xx_BB.mean() + yy_BB.mean() + 2 * xy_BB.mean()) / 4
  # Smaller distances are rounding errors of float32. So a constant batch has no gradient, not NaN.
  floor = 1e-12 * (1 + (center_V**2).sum())
  mean = jax.lax.stop_gradient(mean)
  variances = [jnp.maximum(bandwidth * mean, floor) for bandwidth in bandwidths]

  def kernel(d_BB):
    return sum(jnp.exp(-d_BB / (2 * variance)) for variance in variances) / len(variances)

  within = off_diagonal_mean(kernel(xx_BB)) + off_diagonal_mean(kernel(yy_BB))
  return within - 2 * kernel(xy_BB).mean()
