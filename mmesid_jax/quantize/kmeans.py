"""k-means that codebooks start from: plain, or balanced so that no code begins with more than its
share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmesid_jax.losses.mmd import squared_distances
from mmesid_jax.quantize.sinkhorn import sinkhorn

BALANCED_ITERATIONS = 2


def _spread(x_ND: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
  """k-means++ choice of the first centroids (Arthur and Vassilvitskii 2007)."""
  chosen = [int(rng.integers(len(x_ND)))]
  nearest_N = ((x_ND - x_ND[chosen[0]]) ** 2).sum(1)
  for _ in range(1, clusters):
    total = nearest_N.sum()
    weight = nearest_N / total if total > 0 else None  # all points taken: any will do
    chosen.append(int(rng.choice(len(x_ND), p=weight)))
    nearest_N = np.minimum(nearest_N, ((x_ND - x_ND[chosen[-1]]) ** 2).sum(1))
  return x_ND[chosen]


def balanced_assignment(distance_NC: np.ndarray) -> np.ndarray:
  """Codes int [N] such that no code has more than ceil(N / C) points.

  Points choose in the order of how much they prefer their best code under the transport plan; a
  point whose code is full takes its best code that is not.
  """
  N, C = distance_NC.shape
  capacity = -(-N // C)
  plan_NC = np.asarray(sinkhorn(jnp.asarray(distance_NC), epsilon=0.01, iterations=50))
  order_NC = np.argsort(-plan_NC, axis=1, kind="stable")
  best_two = np.take_along_axis(plan_NC, order_NC[:, :2], 1)
  margin_N = best_two[:, 0] - best_two[:, -1]
  left_C, code_N = np.full(C, capacity), np.zeros(N, np.int64)
  for point in np.argsort(-margin_N, kind="stable"):
    choices = order_NC[point]
    code = choices[np.argmax(left_C[choices] > 0)]
    code_N[point] = code
    left_C[code] -= 1
  return code_N


@functools.partial(jax.jit, static_argnames="codes")
def _means(x_ND: jax.Array, code_N: jax.Array, old_CD: jax.Array, codes: int):
  """Centroid of every code; an empty code keeps its old one."""
  count_C = jnp.zeros(codes).at[code_N].add(1)
  sum_CD = jnp.zeros((codes, x_ND.shape[1])).at[code_N].add(x_ND)
  return jnp.where(count_C[:, None] > 0, sum_CD / jnp.maximum(count_C, 1)[:, None], old_CD)


_distances = jax.jit(squared_distances)


def kmeans(
  x_ND: np.ndarray, clusters: int, *, balanced: bool, iterations: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Centroids float32 [C, D] and codes int64 [N] of x, k-means++ start.

  balanced: the last iterations bound the sizes by ceil(N / C) (the first need not: they only bring
  the centroids near). With fewer points than clusters some centroids coincide.
  """
  x_ND = np.asarray(x_ND, np.float32)
  centroid_CD = jnp.asarray(_spread(x_ND, clusters, np.random.default_rng(seed)))
  for iteration in range(iterations):
    bounded = balanced and iteration >= iterations - BALANCED_ITERATIONS
    distance_NC = np.asarray(_distances(x_ND, centroid_CD))
    code_N = balanced_assignment(distance_NC) if bounded else distance_NC.argmin(1)
    centroid_CD = _means(x_ND, code_N, centroid_CD, clusters)
  return np.asarray(centroid_CD), code_N


def residual_kmeans(
  z_ND: np.ndarray, levels: int, clusters: int, *, balanced: bool, seed: int = 0
) -> np.ndarray:
  """Codebooks float32 [L, C, D]: k-means of z, then of what remains behind each level."""
  residual_ND, books = np.asarray(z_ND, np.float32), []
  for level in range(levels):
    book_CD, code_N = kmeans(residual_ND, clusters, balanced=balanced, seed=seed + level)
    residual_ND = residual_ND - book_CD[code_N]
    books.append(book_CD)
  return np.stack(books)
