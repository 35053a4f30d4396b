"""Kernel means against a double sum in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.losses.mmd import mmd


def batches(b=7, width=5, offset=0.0, seed=0):
  rng = np.random.default_rng(seed)
  x, y = rng.normal(size=(b, width)), 1.5 * rng.normal(size=(b, width)) + 0.3
  return np.float32(x + offset), np.float32(y + offset)


def oracle(x, y, bandwidth=0.5):
  """The released code's loss without its constant 2 / (B - 1), pair by pair."""
  x, y = np.float64(x), np.float64(y)
  pooled, b = np.concatenate([x, y]), len(x)
  variance = bandwidth * np.mean([((p - q) ** 2).sum() for p in pooled for q in pooled])

  def k(p, q):
    return np.exp(-((p - q) ** 2).sum() / (2 * variance))

  pairs = [(i, j) for i in range(b) for j in range(b)]
  within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / (b * (b - 1))
  return within - 2 * sum(k(x[i], y[j]) for i, j in pairs) / b**2


# At offset 1000 the products of float32 hold no digit of the distances: the origin must not matter.
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_equals_the_double_sum(offset):
  x, y = batches(offset=offset)
  np.testing.assert_allclose(mmd(x, y), oracle(x, y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bandwidths", [(0.1,), (0.03, 0.5), (0.5, 2.0, 8.0)])
def test_several_kernels_give_the_mean_of_each(bandwidths):
  x, y = batches()
  expected = np.mean([oracle(x, y, bandwidth) for bandwidth in bandwidths])
  np.testing.assert_allclose(mmd(x, y, bandwidths), expected, rtol=1e-4, atol=1e-6)


def test_released_code_differs_by_its_constant():
  """METHOD's formula sums the whole Gram matrices, diagonals included, over B (B - 1)."""
  x, y = batches()
  b, pooled = len(x), np.float64(np.concatenate([x, y]))
  d = ((pooled[:, None] - pooled) ** 2).sum(2)
  k = np.exp(-d / (2 * 0.5 * d.mean()))
  released = (k[:b, :b].sum() + k[b:, b:].sum()) / (b * (b - 1)) - 2 * k[:b, b:].mean()
  np.testing.assert_allclose(mmd(x, y), released - 2 / (b - 1), rtol=1e-4, atol=1e-6)


def test_permuting_a_batch_changes_nothing():
  x, y = batches()
  order = np.random.default_rng(1).permutation(len(y))
  np.testing.assert_allclose(mmd(x, y[order]), mmd(x, y), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("i", [(0, 0), (2, 3), (6, 4)])
def test_gradient_does_not_go_through_the_bandwidth(side, i):
  """Central differences in float64 of the loss with the bandwidth held."""
  given, step = batches(), 1e-5
  pooled = np.float64(np.concatenate(given))
  variance = 0.5 * ((pooled[:, None] - pooled) ** 2).sum(2).mean()

  def fixed_bandwidth(x, y):
    xx, xy, yy = (
      np.exp(-((a[:, None] - b) ** 2).sum(2) / (2 * variance)) for a, b in ((x, x), (x, y), (y, y))
    )
    b = len(x)
    return (xx.sum() + yy.sum() - 2 * b) / (b * (b - 1)) - 2 * xy.mean()

  up, down = ([np.float64(x) for x in given] for _ in range(2))
  up[side][i] += step
  down[side][i] -= step
  numeric = (fixed_bandwidth(*up) - fixed_bandwidth(*down)) / (2 * step)
  found = jax.grad(mmd, argnums=side)(*given)[i]
  np.testing.assert_allclose(found, numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("b", "value"), [(4, 2.5), (7, 0.1), (100, -31.7), (5, 0.0)])
def test_constant_batches_are_no_distance_apart_and_have_no_gradient(b, value):
  """Also where the mean of equal rows is rounded."""
  x = jnp.full((b, 3), value)
  distance, gradients = jax.value_and_grad(mmd, argnums=(0, 1))(x, x)
  np.testing.assert_allclose(distance, 0, atol=1e-6)
  np.testing.assert_allclose(gradients, 0, atol=1e-3)


def test_far_apart_batches_are_far():
  x, y = batches()
  assert mmd(x, y + 5) > mmd(x, y) > mmd(x, x)


@pytest.mark.parametrize(("x", "y"), [((3, 2), (4, 2)), ((3, 2), (3, 1)), ((1, 2), (1, 2))])
def test_refuses_batches_that_do_not_fit(x, y):
  with pytest.raises(ValueError, match="two equal batches"):
    mmd(jnp.ones(x), jnp.ones(y))
