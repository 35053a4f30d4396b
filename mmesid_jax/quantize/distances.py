"""Squared distances between two sets of vectors."""

import jax
import jax.numpy as jnp


def squared_distances(x_ND: jax.Array, y_MD: jax.Array) -> jax.Array:
  """[N, M] squared Euclidean distances, |x|^2 + |y|^2 - 2 x.y, never below 0."""
  product_NM = jnp.matmul(x_ND, y_MD.T, precision="highest")
  return jnp.maximum((x_ND**2).sum(1)[:, None] + (y_MD**2).sum(1) - 2 * product_NM, 0)
