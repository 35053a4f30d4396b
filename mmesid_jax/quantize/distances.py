"""Squared distances between two sets of vectors."""

import jax
import jax.numpy as jnp


def squared_distances(x_ED: jax.Array, y_CD: jax.Array) -> jax.Array:
  """Squared Euclidean distances [E, C], |x|^2 + |y|^2 - 2 x.y, at least 0."""
  product_EC = jnp.matmul(x_ED, y_CD.T, precision="highest")
  return jnp.maximum((x_ED**2).sum(1)[:, None] + (y_CD**2).sum(1) - 2 * product_EC, 0)
