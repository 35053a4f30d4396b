"""k-means: sizes, fixed points, few points, many points."""

import numpy as np
import pytest

from mmesid_jax.quantize import kmeans as module
from mmesid_jax.quantize.kmeans import kmeans, residual_kmeans


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
  size = np.bincount(code, minlength=clusters)
  assert points // clusters <= size.min() and size.max() <= -(-points // clusters)


def test_balance_costs_something_only_where_it_binds():
  x, label = blobs([10, 10, 10])
  plain, balanced = (kmeans(x, 3, balanced=b)[0] for b in (False, True))
  np.testing.assert_allclose(np.sort(plain, 0), np.sort(balanced, 0), rtol=1e-4, atol=1e-4)


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
  """Two scales: the first level finds the coarse centers, the second the fine offsets."""
  coarse = np.float32([[0, 0], [40, 0], [0, 40], [40, 40]])
  fine = np.float32([[-1, 0], [1, 0], [0, -2], [0, 2]])
  x = (coarse[:, None] + fine).reshape(-1, 2)
  book = residual_kmeans(x, 2, 4, balanced=True)
  residual = x
  for level in book:
    residual = residual - level[((residual[:, None] - level) ** 2).sum(2).argmin(1)]
  np.testing.assert_allclose(residual, 0, atol=1e-4)


def inertia(x, centroid, code):
  return ((np.float64(x) - centroid[code]) ** 2).sum()


def test_inertia_of_plain_k_means():
  """Against Lloyd's iterations in float64 from a k-means++ start, the best of five."""
  x = np.float32(np.random.default_rng(5).normal(size=(600, 3)))

  def reference(rng, clusters=12):
    centroid = x[rng.choice(len(x), 1)].astype(np.float64)
    while len(centroid) < clusters:
      left = ((x[:, None] - centroid) ** 2).sum(2).min(1)
      centroid = np.concatenate([centroid, x[rng.choice(len(x), 1, p=left / left.sum())]])
    for _ in range(100):
      code = ((x[:, None] - centroid) ** 2).sum(2).argmin(1)
      centroid = np.stack([x[code == c].mean(0) for c in range(clusters)])
    return inertia(x, centroid, code)

  best = min(reference(np.random.default_rng(seed)) for seed in range(5))
  ours = np.mean([inertia(x, *kmeans(x, 12, balanced=False, seed=s)) for s in range(5)])
  assert ours < 1.05 * best


def test_balanced_costs_little_more_than_plain():
  x = np.float32(np.random.default_rng(6).normal(size=(500, 3)))
  plain, balanced = (inertia(x, *kmeans(x, 10, balanced=b)) for b in (False, True))
  assert balanced < 1.1 * plain


@pytest.mark.parametrize("balanced", [False, True])
def test_chunks_change_nothing(monkeypatch, balanced):
  x = np.float32(np.random.default_rng(7).normal(size=(90, 3)))
  whole_book, whole_code = kmeans(x, 7, balanced=balanced)
  monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 7 * 40)  # 40 rows: the last chunk is shorter
  assert [rows.start for rows in module._chunks(x, 7)] == [0, 40, 80]
  book, code = kmeans(x, 7, balanced=balanced)
  np.testing.assert_array_equal(code, whole_code)
  np.testing.assert_allclose(book, whole_book, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("balanced", "limit", "value"),
  [(False, "SAMPLE", 16), (True, "SAMPLE", 16), (True, "BALANCED_BYTES", 64 * 4 * 4)],
)
def test_many_points_are_found_by_a_sample(monkeypatch, balanced, limit, value):
  """Centroids come from 16 points a cluster, codes are the nearest of all points."""
  x, label = blobs([100, 100, 100, 100])
  monkeypatch.setattr(module, limit, value)
  seen = []
  of_sample = module._initial_centroids
  monkeypatch.setattr(
    module, "_initial_centroids", lambda x, *rest: seen.append(x) or of_sample(x, *rest)
  )
  centroid, code = kmeans(x, 4, balanced=balanced)
  assert len(seen[0]) == 64 and len(np.unique(seen[0], axis=0)) == 64  # none twice
  assert code.shape == (400,) and len(set(zip(label, code, strict=True))) == 4
  np.testing.assert_array_equal(code, ((x[:, None] - centroid) ** 2).sum(2).argmin(1))


def test_the_input_is_overwritten_only_on_request():
  x = np.float32(np.random.default_rng(8).normal(size=(30, 3)))
  before = x.copy()
  book = residual_kmeans(x, 2, 4, balanced=True)
  np.testing.assert_array_equal(x, before)
  np.testing.assert_array_equal(residual_kmeans(x, 2, 4, balanced=True, overwrite=True), book)
  assert (x != before).any()


@pytest.mark.parametrize("balanced", [False, True])
def test_mostly_one_row(balanced):
  """900 of 1,000 rows are equal: no NaN, sizes as ever, and it takes no step for every row."""
  x = np.float32(np.random.default_rng(9).normal(size=(1000, 3)))
  x[:900] = x[0]
  centroid, code = kmeans(x, 16, balanced=balanced)
  assert np.isfinite(centroid).all()
  if balanced:
    assert set(np.bincount(code, minlength=16)) == {62, 63}
