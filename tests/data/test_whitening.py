"""Whitening against numpy's own decompositions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.data.features import read_new_features
from mmesid_jax.data.whitening import fit_whitening, whiten


def table(rows=4, width=3, seed=0):
  return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def whitened(x_IV, width, std):
  return whiten(x_IV, fit_whitening(x_IV, width, std))


def test_whitening_gives_the_principal_components_unit_covariance():
  """Against numpy's SVD, up to each component's sign."""
  x_IV = table(200, 8) @ np.diag(np.arange(8, 0, -1)) + 5
  x_IV[0] = 0
  y_IW = whitened(x_IV, 5, 0.5)
  assert y_IW.shape == (200, 5) and y_IW.dtype == np.float32 and not y_IW[0].any()
  np.testing.assert_allclose(y_IW[1:].mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(np.cov(y_IW[1:].T, ddof=0), 0.25 * np.eye(5), atol=1e-6)
  left, _, _ = np.linalg.svd(x_IV[1:] - x_IV[1:].mean(0), full_matrices=False)
  alignment = 2 * left[:, :5].T @ y_IW[1:] / np.sqrt(199)
  np.testing.assert_allclose(np.abs(alignment), np.eye(5), atol=1e-5)


@given(st.permutations(list(range(1, 30))), st.integers(1, 6))
def test_whitening_does_not_depend_on_the_order_of_the_items(order, width):
  x_IV = table(30, 6, seed=1)
  order = [0, *order]
  np.testing.assert_allclose(
    whitened(x_IV, width, 1.0)[order], whitened(x_IV[order], width, 1.0), atol=1e-4
  )


def test_whitening_ignores_row_0_and_fixes_the_sign():
  x_IV = table(50, 4)
  shifted = x_IV.copy()
  shifted[0] = 1e6
  np.testing.assert_array_equal(whitened(x_IV, 4, 1.0), whitened(shifted, 4, 1.0))
  line_IV = np.outer(np.arange(11.0), [-3, 1])  # its one direction's largest loading is the first
  y_IW = whitened(line_IV, 1, 1.0)
  assert (np.diff(y_IW[1:, 0]) < 0).all()


def test_directions_without_variance_stay_zero():
  x_IV = table(40, 2) @ table(2, 6)  # rank 2 in any 6 directions: the rest is rounding
  y_IW = whitened(x_IV, 4, 1.0)
  np.testing.assert_allclose(y_IW[1:].std(0), [1, 1, 0, 0], atol=1e-5)
  assert not whitened(np.ones((5, 3), np.float32), 2, 1.0).any()


@pytest.mark.parametrize("width", [0, 4])
def test_whitening_to_an_impossible_width(width):
  with pytest.raises(ValueError, match=f"width {width} of a table with rows of 3 values"):
    fit_whitening(table(), width, 1.0)


def test_new_rows_are_whitened_as_those_of_training(tmp_path):
  """Rows of a file without padding, in another order; and by numpy's own inverse square root."""
  x_IV = table(60, 4) @ np.diag([3, 2, 1, 0.5]) + 5
  by = fit_whitening(x_IV, 4, 0.5)
  np.save(tmp_path / "new.npy", x_IV[[7, 3]])
  new_NV = read_new_features(tmp_path / "new.npy", width=4)
  np.testing.assert_allclose(by(new_NV), whiten(x_IV, by)[[7, 3]], atol=1e-5)
  precision = np.linalg.inv(np.cov(x_IV[1:].T, ddof=0))
  away_V = np.float64([[1, -2, 3, 40]]) - x_IV[1:].mean(0)  # as far as no row of training is
  distance = 0.25 * away_V @ precision @ away_V.T
  np.testing.assert_allclose((by(away_V + x_IV[1:].mean(0)) ** 2).sum(), distance, rtol=1e-4)
