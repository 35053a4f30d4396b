"""The log domain in float32 against the plain domain in float64."""

import jax
import numpy as np
import pytest

from mmesid_jax.quantize.sinkhorn import sinkhorn


def distances(rows=40, codes=8, scale=1.0, seed=0):
  return np.float32(scale * np.random.default_rng(seed).random((rows, codes)) ** 2 + 3)


def plain(distance, epsilon, iterations, first="codes"):
  """Cuturi 2013: scale the columns to 1 / C and the rows to 1 / B; distances over [-1, 1]."""
  d = np.float64(distance)
  d = 2 * (d - d.min()) / (d.max() - d.min()) - 1
  plan = np.exp(-d / epsilon)
  for i in range(2 * iterations):
    if (i % 2 == 0) == (first == "codes"):
      plan /= plan.sum(0) * plan.shape[1]
    else:
      plan /= plan.sum(1, keepdims=True) * plan.shape[0]
  return plan


@pytest.mark.parametrize("first", ["codes", "samples"])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-3])
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_equals_the_plain_domain(scale, iterations, first):
  d = distances(scale=scale)
  found = np.exp(sinkhorn(d, epsilon=0.5, iterations=iterations, first=first))
  expected = plain(d, 0.5, iterations, first)
  np.testing.assert_allclose(found, expected, rtol=2e-3 if scale < 1 else 1e-4)


@pytest.mark.parametrize("iterations, differ", [(2, True), (50, False)])
def test_before_it_converges_the_order_decides_some_codes(iterations, differ):
  """At the epsilon of training; these distances have converged after its 50 iterations."""
  d = distances(rows=512, codes=16)
  codes = {}
  for first in ("codes", "samples"):
    expected = plain(d, 0.003, iterations, first)
    best_two = np.sort(expected, 1)[:, -2:]
    decided = best_two[:, 1] > 1.1 * best_two[:, 0]  # near ties may fall either way
    found = np.asarray(sinkhorn(d, epsilon=0.003, iterations=iterations, first=first).argmax(1))
    np.testing.assert_array_equal(found[decided], expected.argmax(1)[decided])
    codes[first] = expected.argmax(1)
  assert (codes["codes"] != codes["samples"]).any() == differ


def test_small_epsilon_in_float32():
  """The epsilon of training: exp(1 / 0.003) overflows float32; codes must be those of float64."""
  d = distances(rows=512, codes=16)
  log_plan = np.float64(sinkhorn(d, epsilon=0.003, iterations=50))
  assert np.isfinite(log_plan).all()
  plan, expected = np.exp(log_plan), plain(d, 0.003, 50)
  np.testing.assert_allclose(plan.sum(1), 1 / 512, rtol=1e-3)
  np.testing.assert_allclose(plan.sum(0), expected.sum(0), rtol=0.02, atol=1e-4)
  best_two = np.sort(expected, 1)[:, -2:]
  decided = best_two[:, 1] > 1.1 * best_two[:, 0]  # near ties may fall either way
  assert decided.mean() > 0.8
  np.testing.assert_array_equal(log_plan.argmax(1)[decided], expected.argmax(1)[decided])


def test_converged_marginals_are_uniform():
  plan = np.exp(np.float64(sinkhorn(distances(), epsilon=0.1, iterations=300)))
  np.testing.assert_allclose(plan.sum(1), 1 / 40, rtol=1e-4)
  np.testing.assert_allclose(plan.sum(0), 1 / 8, rtol=1e-4)


def test_spreads_what_argmin_puts_on_one_code():
  d = distances(rows=64, codes=4)
  d[:, 0] -= 2  # every row is nearest to code 0
  assert (d.argmin(1) == 0).all()
  count = np.bincount(sinkhorn(d, epsilon=0.003, iterations=50).argmax(1), minlength=4)
  assert count.min() >= 8  # a fair share is 16


def test_equal_distances_are_no_nan():
  plan = np.exp(sinkhorn(np.full((6, 3), 2.0, np.float32), epsilon=0.003, iterations=50))
  np.testing.assert_allclose(plan, 1 / 18, rtol=1e-4)


def test_passes_no_gradient():
  d = distances()
  gradient = jax.grad(lambda d: sinkhorn(d, epsilon=0.5, iterations=3)[0, 0])(d)
  np.testing.assert_array_equal(gradient, 0)
