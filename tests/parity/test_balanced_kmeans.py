"""Balanced k-means against the package k-means-constrained: sizes and inertia."""

import pathlib

import numpy as np
import pytest

from mmesid_jax.quantize.kmeans import kmeans

pytestmark = pytest.mark.parity
BEAUTY = pathlib.Path(__file__).parents[3] / "shared" / "data" / "beauty" / "text.npy"


def blobs(sizes, width, seed):
  rng = np.random.default_rng(seed)
  label = np.repeat(np.arange(len(sizes)), sizes)
  center = 2 * rng.normal(size=(len(sizes), width))
  return np.float32(center[label] + rng.normal(size=(len(label), width)))


def normal(seed):
  return np.random.default_rng(seed).normal(size=(2000, 16)).astype(np.float32)


def skewed(seed):
  """Half of all points in one of 20 blobs, few in many: no clusters of equal size are natural."""
  return blobs([1000, 400, 200, 100, *[20] * 15], 16, seed)


def uneven(seed):
  """2,000 is no multiple of 19 clusters, and every row is there twice."""
  return np.repeat(skewed(seed)[::2], 2, axis=0)


def beauty(seed):
  if not BEAUTY.is_file():
    pytest.skip(f"{BEAUTY.name} of Beauty is not beside the repository")
  table = np.load(BEAUTY, mmap_mode="r", allow_pickle=False)
  drawn = np.random.default_rng(seed).choice(len(table) - 1, 3000, replace=False) + 1
  return np.float32(table[np.sort(drawn)])


def inertia(x, centroid, code):
  return ((np.float64(x) - centroid[code]) ** 2).sum()


def theirs(x, clusters, low, high, seed):
  from k_means_constrained import KMeansConstrained

  model = KMeansConstrained(
    clusters, size_min=low, size_max=high, n_init=1, random_state=seed, n_jobs=1
  ).fit(x)
  return model.cluster_centers_, model.labels_


CASES = [(normal, 20, 3), (skewed, 20, 3), (uneven, 19, 3), (beauty, 64, 1)]


@pytest.mark.parametrize(("data", "clusters", "seeds"), CASES, ids=[c[0].__name__ for c in CASES])
def test_inertia_of_the_package(data, clusters, seeds):
  """A start is a matter of luck, so the mean over seeds counts."""
  ours, reference = [], []
  for seed in range(seeds):
    x = data(seed)
    low, high = len(x) // clusters, -(-len(x) // clusters)
    centroid, code = kmeans(x, clusters, balanced=True, seed=seed)
    size = np.bincount(code, minlength=clusters)
    assert low <= size.min() and size.max() <= high
    ours.append(inertia(x, centroid, code))
    reference.append(inertia(x, *theirs(x, clusters, low, high, seed)))
  print(f"{data.__name__}: ours {np.round(ours, 2)}, package {np.round(reference, 2)}")
  assert np.mean(ours) <= 1.02 * np.mean(reference)
