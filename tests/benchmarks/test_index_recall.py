"""The parts of benchmarks/index_recall.py, against plain sorting."""

import index_recall
import numpy as np


def test_equally_long_vectors_have_the_products_as_angles():
  rng = np.random.default_rng(0)
  item_NV = rng.normal(size=(200, 6)) * rng.exponential(size=(200, 1))
  query_QV = rng.normal(size=(20, 6))
  long_NV = index_recall.equally_long(item_NV)
  length_N = np.linalg.norm(long_NV, axis=1)
  np.testing.assert_allclose(length_N, length_N[0], rtol=1e-5)
  cosine_QN = np.pad(query_QV, ((0, 0), (0, 1))) @ long_NV.T / length_N
  by_product = np.argsort(-(query_QV @ item_NV.T), axis=1)[:, :10]
  np.testing.assert_array_equal(np.argsort(-cosine_QN, axis=1)[:, :10], by_product)
  best_QK = index_recall.best_items(query_QV, item_NV, 10)
  assert [set(row) for row in best_QK.tolist()] == [set(row) for row in by_product.tolist()]


def test_recall_is_the_share_of_the_best_that_was_found():
  best = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
  found = np.array([[4, 3, 9, 9], [8, 7, 6, 5]])
  assert index_recall.recall(found, best) == 0.75
