"""k-means that codebooks start from: plain, or balanced so that every code has its share."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mmesid_jax.quantize.balance import balanced_assignment, nearest
from mmesid_jax.quantize.distances import squared_distances

CHUNK_BYTES = 64 * 2**20  # of distances, or of points, on the device at once
SAMPLE = 256  # points a cluster that centroids are found with, when there are more
BALANCED_BYTES = 256 * 2**20  # of distances between a balanced sample and its clusters
ITERATIONS = 100  # at most
GAIN = 5e-4  # of the inertia, that an iteration must bring for another one
POLISH = 3  # iterations over all points behind those over the sample


@functools.partial(jax.jit, static_argnames="clusters")
def _spread(x_ND: jax.Array, key: jax.Array, clusters: int) -> jax.Array:
  """k-means++ choice of the first centroids [C, D]: of a few drawn by their squared distance to
  those that are there, the one that leaves the least (Arthur and Vassilvitskii 2007, section 5)."""
  N, D = x_ND.shape
  trials = 2 + int(math.log(clusters))

  def left(point):
    """Exact where points coincide, so that one taken is never drawn again."""
    return ((x_ND - x_ND[point]) ** 2).sum(1)

  def add(c, carry):
    chosen_C, nearest_N = carry
    up_to_N = jnp.cumsum(nearest_N)
    drawn_T = jax.random.uniform(jax.random.fold_in(key, c), (trials,)) * up_to_N[-1]
    point_T = jnp.minimum(jnp.searchsorted(up_to_N, drawn_T, side="right"), N - 1)
    left_TN = jnp.minimum(nearest_N, squared_distances(x_ND[point_T], x_ND))
    best = point_T[left_TN.sum(1).argmin()]
    return chosen_C.at[c].set(best), jnp.minimum(nearest_N, left(best))

  first = jax.random.randint(key, (), 0, N)
  chosen_C = jnp.full(clusters, first)
  chosen_C, _ = jax.lax.fori_loop(1, clusters, add, (chosen_C, left(first)))
  return x_ND[chosen_C]


_distances = jax.jit(squared_distances)


@jax.jit
def _of_chunk(x_BD: jax.Array, centroid_CD: jax.Array):
  """Nearest codes [B], and what is summed over chunks: points and their number by code, inertia."""
  code_B, least_B = nearest(squared_distances(x_BD, centroid_CD))
  return code_B, (*_sums(x_BD, code_B, len(centroid_CD)), least_B.sum())


@functools.partial(jax.jit, static_argnames="clusters")
def _sums(x_BD: jax.Array, code_B: jax.Array, clusters: int):
  """By a product, not by scattering: the same on every run of a GPU."""
  one_BC = jax.nn.one_hot(code_B, clusters, dtype=x_BD.dtype)
  return jnp.matmul(one_BC.T, x_BD, precision="highest"), one_BC.sum(0)


def _means(sum_CD: jax.Array, count_C: jax.Array, old_CD: jax.Array) -> jax.Array:
  """An empty code keeps its old centroid."""
  return jnp.where(count_C[:, None] > 0, sum_CD / jnp.maximum(count_C, 1)[:, None], old_CD)


def _chunks(x_ND: np.ndarray, clusters: int) -> Iterator[slice]:
  rows = max(CHUNK_BYTES // (4 * max(clusters, x_ND.shape[1])), 1)
  return (slice(i, i + rows) for i in range(0, len(x_ND), rows))


def _pass(x_ND: np.ndarray, centroid_CD: jax.Array):
  """An iteration of Lloyd's: codes int32 [N] by the given centroids, their inertia, the means."""
  codes, total = [], None
  for rows in _chunks(x_ND, len(centroid_CD)):
    code_B, sums = _of_chunk(x_ND[rows], centroid_CD)
    codes.append(np.asarray(code_B))
    total = sums if total is None else jax.tree.map(jnp.add, total, sums)
  sum_CD, count_C, inertia = total
  return np.concatenate(codes), float(inertia), _means(sum_CD, count_C, centroid_CD)


def _lloyd(x_ND: np.ndarray, centroid_CD: jax.Array, iterations: int):
  """Codes and the centroids that are their means, when little is gained any more."""
  before = math.inf
  for _ in range(iterations):
    code_N, inertia, centroid_CD = _pass(x_ND, centroid_CD)
    if before - inertia <= GAIN * inertia:
      break
    before = inertia
  return code_N, centroid_CD


def _balanced_lloyd(x_ND: np.ndarray, centroid_CD: jax.Array):
  """The same with codes of equal size."""
  before, price_C = math.inf, None
  for _ in range(ITERATIONS):
    distance_NC = np.asarray(_distances(x_ND, centroid_CD))
    code_N, price_C = balanced_assignment(distance_NC, price_C)
    inertia = float(distance_NC[np.arange(len(x_ND)), code_N].sum(dtype=np.float64))
    centroid_CD = _means(*_sums(x_ND, code_N, len(centroid_CD)), centroid_CD)
    if before - inertia <= GAIN * inertia:
      break
    before = inertia
  return code_N, centroid_CD


def kmeans(
  x_ND: np.ndarray, clusters: int, *, balanced: bool, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Centroids float32 [C, D] and codes int64 [N] of x, k-means++ start.

  balanced: sizes are floor(N / C) or ceil(N / C). With fewer points than clusters some centroids
  coincide. Of more than SAMPLE points a cluster (or more than BALANCED_BYTES hold the distances of)
  centroids come from a random sample of so many, in which they are balanced; then codes of all
  points are the nearest.
  """
  N, sample_ND = len(x_ND), np.asarray(x_ND, np.float32)
  most = SAMPLE * clusters
  if balanced:
    most = max(min(most, BALANCED_BYTES // (4 * clusters)), clusters)
  if N > most:
    drawn = np.random.default_rng(seed).choice(N, most, replace=False)
    sample_ND = np.asarray(x_ND[np.sort(drawn)], np.float32)
  centroid_CD = _spread(sample_ND, jax.random.key(seed), clusters)
  code_N, centroid_CD = _lloyd(sample_ND, centroid_CD, ITERATIONS)
  if balanced:
    code_N, centroid_CD = _balanced_lloyd(sample_ND, centroid_CD)
  if N > len(sample_ND):
    if balanced:
      code_N, _, _ = _pass(x_ND, centroid_CD)
    else:
      code_N, centroid_CD = _lloyd(x_ND, centroid_CD, POLISH)
  return np.asarray(centroid_CD), np.asarray(code_N, np.int64)


def residual_kmeans(
  z_ND: np.ndarray,
  levels: int,
  clusters: int,
  *,
  balanced: bool,
  seed: int = 0,
  overwrite: bool = False,
) -> np.ndarray:
  """Codebooks float32 [L, C, D]: k-means of z, then of what remains behind each level.

  overwrite: z, a float32 array, becomes what remains, so that nothing as large is made beside it.
  """
  residual_ND, books = z_ND if overwrite else np.array(z_ND, np.float32), []
  for level in tqdm(range(levels), "k-means", delay=3, leave=False):
    book_CD, code_N = kmeans(residual_ND, clusters, balanced=balanced, seed=seed + level)
    for rows in _chunks(residual_ND, clusters):
      residual_ND[rows] -= book_CD[code_N[rows]]
    books.append(book_CD)
  return np.stack(books)
