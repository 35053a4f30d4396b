"""k-means, from which codebooks start: plain, or balanced so that codes have equal sizes."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.quantize.balance import balanced_assignment, nearest_codes
from mmesid_jax.quantize.distances import squared_distances

CHUNK_BYTES = 64 * 2**20  # of distances, or of points, on the device at once
SAMPLE = 256  # most points per cluster from which centroids are computed
BALANCED_BYTES = 256 * 2**20  # most bytes of distances between a balanced sample and its clusters
ITERATIONS = 100  # at most
GAIN = 5e-4  # an iteration that lowers the inertia by a smaller fraction is the last
POLISH = 3  # iterations over all points after those over the sample


@functools.partial(jax.jit, static_argnames="clusters")
def _initial_centroids(x_ED: jax.Array, key: jax.Array, clusters: int) -> jax.Array:
  """k-means++ choice of initial centroids [C, D].

  Samples a few points in proportion to their squared distance to the nearest centroid so far, and
  takes the one that leaves the smallest sum (Arthur and Vassilvitskii 2007, section 5).
  """
  E, D = x_ED.shape
  trials = 2 + int(math.log(clusters))

  def distances_to(point):
    """Exactly 0 for equal points, so that a chosen point is never sampled again."""
    return ((x_ED - x_ED[point]) ** 2).sum(1)

  def add_centroid(c, carry):
    chosen_C, least_E = carry
    cumulative_E = jnp.cumsum(least_E)
    sample_B = jax.random.uniform(jax.random.fold_in(key, c), (trials,)) * cumulative_E[-1]
    point_B = jnp.minimum(jnp.searchsorted(cumulative_E, sample_B, side="right"), E - 1)
    least_BE = jnp.minimum(least_E, squared_distances(x_ED[point_B], x_ED))
    best = point_B[least_BE.sum(1).argmin()]
    return chosen_C.at[c].set(best), jnp.minimum(least_E, distances_to(best))

  first = jax.random.randint(key, (), 0, E)
  chosen_C = jnp.full(clusters, first)
  chosen_C, _ = jax.lax.fori_loop(1, clusters, add_centroid, (chosen_C, distances_to(first)))
  return x_ED[chosen_C]


_distances = jax.jit(squared_distances)


@jax.jit
def _assign_chunk(x_BD: jax.Array, centroid_CD: jax.Array):
  """Nearest codes [B], and sums over the chunk: of points by code, of their number, the inertia."""
  code_B, least_B = nearest_codes(squared_distances(x_BD, centroid_CD))
  return code_B, (*_sums(x_BD, code_B, len(centroid_CD)), least_B.sum())


@functools.partial(jax.jit, static_argnames="clusters")
def _sums(x_BD: jax.Array, code_B: jax.Array, clusters: int):
  """Sum [C, D] and number [C] of points by code; a product, so that runs on a GPU are equal."""
  one_hot_BC = jax.nn.one_hot(code_B, clusters, dtype=x_BD.dtype)
  return jnp.matmul(one_hot_BC.T, x_BD, precision="highest"), one_hot_BC.sum(0)


def _means(sum_CD: jax.Array, count_C: jax.Array, old_CD: jax.Array) -> jax.Array:
  """Means [C, D] of the points of every code; an empty code keeps its old centroid."""
  return jnp.where(count_C[:, None] > 0, sum_CD / jnp.maximum(count_C, 1)[:, None], old_CD)


def _chunks(x_ED: np.ndarray, clusters: int) -> Iterator[slice]:
  rows = max(CHUNK_BYTES // (4 * max(clusters, x_ED.shape[1])), 1)
  return (slice(i, i + rows) for i in range(0, len(x_ED), rows))


def _lloyd_iteration(x_ED: np.ndarray, centroid_CD: jax.Array):
  """Codes int32 [E] for the given centroids, their inertia, and the means of the codes."""
  codes, total = [], None
  for rows in _chunks(x_ED, len(centroid_CD)):
    code_B, sums = _assign_chunk(x_ED[rows], centroid_CD)
    codes.append(np.asarray(code_B))
    total = sums if total is None else jax.tree.map(jnp.add, total, sums)
  sum_CD, count_C, inertia = total
  return np.concatenate(codes), float(inertia), _means(sum_CD, count_C, centroid_CD)


def _lloyd(x_ED: np.ndarray, centroid_CD: jax.Array, iterations: int):
  """Lloyd's algorithm: codes, and their means as centroids, when the gain is less than GAIN."""
  last_inertia = math.inf
  for _ in range(iterations):
    code_E, inertia, centroid_CD = _lloyd_iteration(x_ED, centroid_CD)
    if last_inertia - inertia <= GAIN * inertia:
      break
    last_inertia = inertia
  return code_E, centroid_CD


def _balanced_lloyd(x_ED: np.ndarray, centroid_CD: jax.Array):
  """`_lloyd` with codes of equal size."""
  last_inertia, price_C = math.inf, None
  for _ in range(ITERATIONS):
    distance_EC = np.asarray(_distances(x_ED, centroid_CD))
    code_E, price_C = balanced_assignment(distance_EC, price_C)
    inertia = float(distance_EC[np.arange(len(x_ED)), code_E].sum(dtype=np.float64))
    centroid_CD = _means(*_sums(x_ED, code_E, len(centroid_CD)), centroid_CD)
    if last_inertia - inertia <= GAIN * inertia:
      break
    last_inertia = inertia
  return code_E, centroid_CD


def kmeans(
  x_ED: np.ndarray, clusters: int, *, balanced: bool, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Centroids float32 [C, D] and codes int64 [E] of x, with a k-means++ start.

  With fewer points than clusters some centroids are equal. With more than SAMPLE points per cluster
  (or, balanced, distances of more than BALANCED_BYTES), centroids are computed from a random sample
  of that size; the codes of all points are then the nearest.

  Args:
    x_ED: points.
    clusters: number of clusters, C.
    balanced: codes of all points, or of the sample, have floor(E / C) or ceil(E / C) points.
    seed: of the start and of the sample.
  """
  E, sample_ED = len(x_ED), np.asarray(x_ED, np.float32)
  most = SAMPLE * clusters
  if balanced:
    most = max(min(most, BALANCED_BYTES // (4 * clusters)), clusters)
  if E > most:
    rows = np.random.default_rng(seed).choice(E, most, replace=False)
    sample_ED = np.asarray(x_ED[np.sort(rows)], np.float32)
  centroid_CD = _initial_centroids(sample_ED, jax.random.key(seed), clusters)
  code_E, centroid_CD = _lloyd(sample_ED, centroid_CD, ITERATIONS)
  if balanced:
    code_E, centroid_CD = _balanced_lloyd(sample_ED, centroid_CD)
  if E > len(sample_ED):
    if balanced:
      code_E, _, _ = _lloyd_iteration(x_ED, centroid_CD)
    else:
      code_E, centroid_CD = _lloyd(x_ED, centroid_CD, POLISH)
  return np.asarray(centroid_CD), np.asarray(code_E, np.int64)


def residual_kmeans(
  z_ED: np.ndarray,
  levels: int,
  clusters: int,
  *,
  balanced: bool,
  seed: int = 0,
  overwrite: bool = False,
) -> np.ndarray:
  """Codebooks float32 [L, C, D]: k-means of z, then on every level of the residual of the last.

  Args:
    z_ED: points.
    levels: number of levels, L.
    clusters, balanced, seed: as in `kmeans`.
    overwrite: z, which must be a float32 array, is used for the residual instead of a copy.
  """
  residual_ED, books = z_ED if overwrite else np.array(z_ED, np.float32), []
  for level in reporter.progress(range(levels), "k-means"):
    book_CD, code_E = kmeans(residual_ED, clusters, balanced=balanced, seed=seed + level)
    for rows in _chunks(residual_ED, clusters):
      residual_ED[rows] -= book_CD[code_E[rows]]
    books.append(book_CD)
  return np.stack(books)
