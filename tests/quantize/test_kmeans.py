"""k-means: sizes, fixed points, few points."""

import numpy as np
import pytest

from mmesid_jax.quantize.kmeans import balanced_assignment, kmeans, residual_kmeans


def blobs(sizes, width=4, spread=0.05, seed=0):
  rng = np.random.default_rng(seed)
  center = 4 * rng.normal(size=(len(sizes), width))
  label = np.repeat(np.arange(len(sizes)), sizes)
  x = center[label] + spread * rng.normal(size=(len(label), width))
  return np.float32(x), label


def test_finds_separate_blobs():
  x, label = blobs([5, 30, 12, 3])
  centroid, code = kmeans(x, 4, balanced=False)
  assert len(set(zip(label, code, strict=True))) == 4  # one code a blob, one blob a code
  for blob in range(4):
    own = label == blob
    np.testing.assert_allclose(centroid[code[own][0]], x[own].mean(0), rtol=1e-4, atol=1e-4)


def test_centroids_are_means_of_their_points():
  x = np.float32(np.random.default_rng(1).normal(size=(90, 3)))
  for balanced in (False, True):
    centroid, code = kmeans(x, 7, balanced=balanced)
    for c in np.unique(code):
      np.testing.assert_allclose(centroid[c], x[code == c].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("points", "clusters"), [(100, 8), (96, 8), (9, 8), (8, 8), (5, 8), (7, 1)]
)
def test_balanced_sizes_are_bounded(points, clusters):
  """Nearly all points in one blob: plain k-means would give it one code."""
  x, _ = blobs([points - 2, 2])
  _, code = kmeans(x, clusters, balanced=True)
  assert code.shape == (points,)
  assert np.bincount(code, minlength=clusters).max() <= -(-points // clusters)


def test_balance_costs_something_only_where_it_binds():
  x, label = blobs([10, 10, 10])
  plain, balanced = (kmeans(x, 3, balanced=b)[0] for b in (False, True))
  np.testing.assert_allclose(np.sort(plain, 0), np.sort(balanced, 0), rtol=1e-4, atol=1e-4)


def test_assignment_respects_capacity_and_preference():
  """Three points want code 0, which has room for two: the one that loses least moves."""
  distance = np.float32([[0, 9], [0, 9], [0, 1], [9, 0]])
  np.testing.assert_array_equal(balanced_assignment(distance), [0, 0, 1, 1])


@pytest.mark.parametrize("balanced", [False, True])
def test_same_seed_same_codebooks(balanced):
  x = np.float32(np.random.default_rng(2).normal(size=(60, 5)))
  first, again, other = (residual_kmeans(x, 2, 6, balanced=balanced, seed=s) for s in (3, 3, 4))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


@pytest.mark.parametrize("balanced", [False, True])
def test_fewer_points_than_clusters_and_repeated_points(balanced):
  few = np.float32(np.random.default_rng(3).normal(size=(3, 4)))
  for x in (few, np.repeat(few, 5, axis=0), np.ones((6, 4), np.float32)):
    book = residual_kmeans(x, 2, 8, balanced=balanced)
    assert book.shape == (2, 8, 4) and book.dtype == np.float32
    assert np.isfinite(book).all()
    nearest = ((x[:, None] - book[0]) ** 2).sum(2).min(1)
    np.testing.assert_allclose(nearest, 0, atol=1e-8)  # every point is a centroid


def test_levels_take_what_remains():
  """Two scales: the first level finds the coarse centres, the second the fine offsets."""
  coarse = np.float32([[0, 0], [40, 0], [0, 40], [40, 40]])
  fine = np.float32([[-1, 0], [1, 0], [0, -2], [0, 2]])
  x = (coarse[:, None] + fine).reshape(-1, 2)
  book = residual_kmeans(x, 2, 4, balanced=True)
  residual = x
  for level in book:
    residual = residual - level[((residual[:, None] - level) ** 2).sum(2).argmin(1)]
  np.testing.assert_allclose(residual, 0, atol=1e-4)
