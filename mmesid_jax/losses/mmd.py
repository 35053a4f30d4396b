"""Maximum mean discrepancy between two batches, by one Gram matrix."""

import jax
import jax.numpy as jnp


def squared_distances(x_ND: jax.Array, y_MD: jax.Array) -> jax.Array:
  """[N, M] squared Euclidean distances, |x|^2 + |y|^2 - 2 x.y, never below 0."""
  product_NM = jnp.matmul(x_ND, y_MD.T, precision="highest")
  return jnp.maximum((x_ND**2).sum(1)[:, None] + (y_MD**2).sum(1) - 2 * product_NM, 0)


def off_diagonal_mean(x_BB: jax.Array) -> jax.Array:
  """Mean over i != j."""
  b = len(x_BB)
  return (x_BB.sum() - jnp.trace(x_BB)) / (b * (b - 1))


def mmd(x_BV: jax.Array, y_BV: jax.Array, *, bandwidth: float = 0.5) -> jax.Array:
  """Squared MMD under one Gaussian kernel k(a, b) = exp(-|a - b|^2 / (2 s^2)).

  s^2 = bandwidth * mean squared distance over all (2B)^2 pairs of the pooled batch, held constant
  for the gradient. Unbiased within batches, plain mean across. It compares distributions: permuting
  a batch changes nothing. The released code adds the constant 2 / (B - 1). Sources: MME-SID,
  reconstruction loss; Gretton et al. 2012, Lemma 6. O(B^2 + B V) memory, never a (2B, 2B, V)
  tensor.

  Returns a float32 scalar. Raises ValueError when the batches differ in shape or hold fewer than 2
  rows.
  """
  if x_BV.shape != y_BV.shape or len(x_BV) < 2:
    raise ValueError(f"mmd wants two equal batches of >= 2 rows, got {x_BV.shape} and {y_BV.shape}")
  b = len(x_BV)
  pooled_NV = jnp.concatenate([x_BV, y_BV]).astype(jnp.float32)
  # Distances do not depend on the origin, but float32 products of far-off points lose digits.
  pooled_NV = pooled_NV - jax.lax.stop_gradient(pooled_NV.mean(0))
  d_NN = squared_distances(pooled_NV, pooled_NV)
  variance = jnp.maximum(
    bandwidth * jax.lax.stop_gradient(d_NN.mean()), 1e-12
  )  # constant batch: no NaN
  k_NN = jnp.exp(-d_NN / (2 * variance))
  within = off_diagonal_mean(k_NN[:b, :b]) + off_diagonal_mean(k_NN[b:, b:])
  return within - 2 * k_NN[:b, b:].mean()
