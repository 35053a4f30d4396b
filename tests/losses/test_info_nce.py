"""InfoNCE against float64, and which side is the query."""

import jax
import numpy as np
import pytest

from mmesid_jax.losses.info_nce import info_nce


def pairs(b=6, width=4, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, b, width)).astype(np.float32)


def oracle(query, key, temperature):
  query, key = np.float64(query), np.float64(key)
  losses = []
  for i in range(len(query)):
    cosine = [q @ query[i] / np.linalg.norm(q) / np.linalg.norm(query[i]) for q in key]
    p = np.exp(np.array(cosine) / temperature)
    losses.append(-np.log(p[i] / p.sum()))
  return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_definition_with_the_first_argument_as_query(temperature):
  query, key = pairs()
  expected, swapped = oracle(query, key, temperature), oracle(key, query, temperature)
  assert abs(expected - swapped) > 1e-3  # else the next line could not tell the sides apart
  np.testing.assert_allclose(info_nce(query, key, temperature), expected, rtol=1e-5)


def test_lengths_do_not_matter():
  query, key = pairs()
  length = np.linspace(0.1, 9, len(query), dtype=np.float32)[:, None]
  expected = info_nce(query, key, 0.1)
  np.testing.assert_allclose(info_nce(query * length, key / length, 0.1), expected, rtol=1e-4)


def test_zero_vector_has_a_finite_gradient():
  query, key = pairs()
  query[1] = 0
  value, gradients = jax.value_and_grad(info_nce, argnums=(0, 1))(query, key, 0.1)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("value", [1.7, 0.0])
def test_constant_batches_tell_nothing_apart(value):
  """Every key is as near as every other: log B, and nothing to learn from."""
  x = np.full((6, 4), value, np.float32)
  found, gradients = jax.value_and_grad(info_nce, argnums=(0, 1))(x, x, 0.1)
  np.testing.assert_allclose(found, np.log(6), rtol=1e-5)
  np.testing.assert_allclose(gradients, 0, atol=1e-4)
