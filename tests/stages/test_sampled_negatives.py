"""The items that a target is compared with where not all items are scored."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from mmesid_jax.config.schema import default_config
from mmesid_jax.stages import collaborative_stage
from mmesid_jax.stages.recommender_stage import Negatives


def test_a_bce_negative_is_any_item_but_the_target(monkeypatch):
  items, number = 4, 4000
  model = types.SimpleNamespace(  # the score of an item is its id
    item_ID=jnp.arange(items + 1.0)[:, None], hidden=lambda batch, key: jnp.ones((number, 1))
  )
  found = []
  monkeypatch.setattr(
    collaborative_stage, "binary_cross_entropy", lambda *scores: found.append(scores)
  )
  config = default_config().collaborative
  config.loss = "bce"
  target_Q = jnp.arange(number) % items + 1
  batch = types.SimpleNamespace(target_Q=target_Q, weight_Q=jnp.ones(number))
  collaborative_stage.sasrec_loss(config, items)(model, batch, jax.random.key(0))
  ((positive_Q, negative_Q, _),) = found
  np.testing.assert_array_equal(positive_Q, target_Q)
  pairs, count = np.unique(np.stack([target_Q, negative_Q]), axis=1, return_counts=True)
  others = [[t, n] for t in range(1, items + 1) for n in range(1, items + 1) if n != t]
  assert pairs.T.tolist() == others
  expected = number / len(others)
  assert np.abs(count - expected).max() < 5 * expected**0.5


def test_items_are_sampled_as_often_as_their_correction_says():
  """By their number of meetings plus one, so that an item that was never met has a chance."""
  number = 70_000
  item_E, log_expected_E = Negatives(number, np.array([0, 0, 3, 1])).sample(jax.random.key(0))
  expected = {1: number / 7, 2: number * 4 / 7, 3: number * 2 / 7}
  for item, count in zip(*np.unique(item_E, return_counts=True), strict=True):
    here = np.asarray(log_expected_E)[item_E == item]
    np.testing.assert_allclose(here, np.log(expected[int(item)]), rtol=1e-5)
    assert abs(count - expected[int(item)]) < 5 * expected[int(item)] ** 0.5
  assert set(np.asarray(item_E).tolist()) == expected.keys()
