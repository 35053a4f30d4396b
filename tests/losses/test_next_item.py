"""Losses over the catalogue against float64; padding is no candidate, unused places weigh
nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.losses.next_item import binary_cross_entropy, cross_entropy

TARGET = np.array([3, 1, 0, 6, 0, 3])  # 0 = unused place
WEIGHT = np.float32([1, 0.5, 0, 2, 0, 1])


def scores(scale=1.0):
  drawn = scale * np.random.default_rng(0).normal(size=(len(TARGET), 7))
  drawn[:, 0] = drawn.max(1) + 1  # padding outscores all: counting it would show
  return jnp.asarray(drawn, jnp.float32)


def oracle(scores):
  """Sum of weighted losses over items 1..I, and its gradient."""
  total, gradient = 0.0, np.zeros(scores.shape)
  for q in np.flatnonzero(WEIGHT):
    s = np.float64(scores[q, 1:])
    p = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
    total -= WEIGHT[q] * np.log(p[TARGET[q] - 1])
    gradient[q, 1:] = WEIGHT[q] * p
    gradient[q, TARGET[q]] -= WEIGHT[q]
  return total, gradient


@pytest.mark.parametrize("scale", [1.0, 100.0])  # exp(100) overflows float32
def test_cross_entropy_and_its_gradient(scale):
  x = scores(scale)
  (total, weight), gradient = jax.value_and_grad(cross_entropy, has_aux=True)(x, TARGET, WEIGHT)
  expected, expected_gradient = oracle(x)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
  assert weight == 4.5


def test_unused_places_and_padding_change_nothing():
  x = scores()
  other = x.at[:, 0].set(-50).at[WEIGHT == 0].set(1e4)
  assert cross_entropy(other, TARGET, WEIGHT)[0] == cross_entropy(x, TARGET, WEIGHT)[0]
  gradient = jax.grad(lambda x: cross_entropy(x, TARGET, WEIGHT)[0])(other)
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[WEIGHT == 0], 0)
  np.testing.assert_array_equal(gradient[:, 0], 0)


def test_no_used_place_is_zero_not_nan():
  total, weight = cross_entropy(scores(), np.zeros(6, int), np.zeros(6, np.float32))
  assert (total, weight) == (0, 0)


def test_bfloat16_scores_are_summed_in_float32():
  x = jnp.zeros((6, 1001), jnp.bfloat16)  # the sum of 1000 ones is not a bfloat16
  total, _ = cross_entropy(x, TARGET, WEIGHT)
  assert total.dtype == jnp.float32
  np.testing.assert_allclose(total, 4.5 * np.log(1000), rtol=1e-5)


def test_binary_cross_entropy():
  positive, negative = np.float32([[0.3, -2, 5, 90, 1, -90], [1, -1, 4, 0.2, 2, 90]])

  def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))

  with np.errstate(all="ignore"):  # the negated side: 1 - sigmoid(x) has no digits, sigmoid(-x) has
    expected = -(WEIGHT * (np.log(sigmoid(positive)) + np.log(sigmoid(-negative)))).sum()
  total, weight = binary_cross_entropy(positive, negative, WEIGHT)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert weight == 4.5
  gradient = jax.grad(lambda *s: binary_cross_entropy(*s, WEIGHT)[0], argnums=(0, 1))(
    positive, negative
  )
  np.testing.assert_allclose(gradient[0], -WEIGHT * sigmoid(-positive), rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(gradient[1], WEIGHT * sigmoid(negative), rtol=1e-4, atol=1e-7)
