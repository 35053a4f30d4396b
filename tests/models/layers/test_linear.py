"""Dropout: how many elements, which scale, and none without a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.models.layers.linear import dropout


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(rate):
  found = np.asarray(dropout(jnp.ones((1000, 1000)), rate, jax.random.key(0)))
  error = (rate * (1 - rate) / found.size) ** 0.5
  assert abs((found == 0).mean() - rate) < 5 * error + 2**-17
  np.testing.assert_allclose(found[found > 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_is_off_without_a_key_or_a_rate():
  x = jnp.arange(5.0)
  assert dropout(x, 0.5, None) is x
  assert dropout(x, 0.0, jax.random.key(0)) is x
