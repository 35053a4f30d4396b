"""Ranks of new items, candidate by candidate; chance by drawing orders."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.data.held_out_items import make_cases
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.evaluation.cold_start_ranks import (
  chance_metrics,
  content_vectors,
  model_ranks,
  ndcg_by_last,
  nearest_ranks,
)
from mmesid_jax.evaluation.metrics import user_values
from mmesid_jax.evaluation.ranking import summarize_ranks
from mmesid_jax.models.catalogue_scores import ProductScores

WARM, COLD, V = 30, 8, 5


def random_cases(number=300, seed=0):
  rng = np.random.default_rng(seed)
  history, had, item = [], [], []
  for _ in range(number):
    history.append(rng.integers(1, WARM + 1, rng.integers(1, 12)).astype(np.int32))
    item.append(int(rng.integers(WARM + 1, WARM + COLD + 1)))
    before = rng.integers(WARM + 1, WARM + COLD + 1, rng.integers(0, 3))  # cold items had before
    had.append(np.setdiff1d(np.concatenate([history[-1], before]), [item[-1]]))
  return make_cases(history, had, item)


def table(seed=1):
  x_IV = np.random.default_rng(seed).normal(size=(WARM + COLD + 1, V)).astype(np.float32)
  x_IV[0] = 0
  return x_IV


def by_hand(found, score):
  """candidates -> ranks, of scores by case and item."""
  result = {"all items": [], "cold only": []}
  for q in range(len(found)):
    s, had, target = score(q), set(found.had_QX[q].tolist()), found.item_Q[q]
    for name, first in (("all items", 1), ("cold only", WARM + 1)):
      others = [i for i in range(first, WARM + COLD + 1) if i not in had | {target}]
      result[name].append(1 + sum(s[i] >= s[target] for i in others))
  return result


def assert_ranks(found, expected):
  for name, rank_Q in expected.items():
    np.testing.assert_array_equal(found[name], rank_Q, err_msg=name)


class LastItem(ProductScores, nnx.Module):
  """Scores by the dot product with the newest item, and none for an empty history."""

  def __init__(self, x_IV):
    self.x_IV = nnx.Param(jnp.asarray(x_IV))

  def hidden(self, batch, key=None):
    x_XV = self.x_IV[...][batch.item_E[batch.slot_RT]].reshape(-1, V)
    return jnp.concatenate([jnp.zeros((1, V)), x_XV])[batch.read_Q]

  def item_vectors(self):
    return self.x_IV[...]


class OldestItem(nnx.Module):
  """Scores by the dot product with the oldest item."""

  def __init__(self, x_IV):
    self.x_IV = nnx.Param(jnp.asarray(x_IV))

  def catalogue(self):
    return self.x_IV[...]

  def score_batch(self, batch, x_IV):
    length_Q1 = (batch.history_QX > 0).sum(1, keepdims=True)
    oldest_Q1 = jnp.take_along_axis(batch.history_QX, jnp.maximum(length_Q1 - 1, 0), 1)
    return x_IV[oldest_Q1[:, 0]] @ x_IV.T


def test_batches_hold_whole_histories_where_a_row_is_shorter():
  found, x_IV = random_cases(), table()
  expected = by_hand(found, lambda q: x_IV.astype(np.float64) @ x_IV[found.history[q][0]])
  assert_ranks(model_ranks(OldestItem(x_IV), found, Layout(1, 4, 32), WARM), expected)


def test_a_model_ranks_among_all_items_and_among_the_cold_ones():
  found, x_IV = random_cases(), table()
  expected = by_hand(found, lambda q: x_IV.astype(np.float64) @ x_IV[found.history[q][-1]])
  assert_ranks(model_ranks(LastItem(x_IV), found, Layout(1, 4, 32), WARM), expected)
  assert np.mean(expected["all items"]) > np.mean(expected["cold only"])


def test_ties_count_against_the_item():
  found, x_IV = random_cases(), np.ones_like(table())
  ranks = model_ranks(LastItem(x_IV), found, Layout(1, 16, 32), WARM)
  assert_ranks(ranks, by_hand(found, lambda q: np.zeros(len(x_IV))))


def test_the_nearest_by_the_cosine_to_the_mean_of_the_last():
  found, features = random_cases(), {"text": table(2), "visual": table(3) * 50}
  unit = {
    m: x / np.linalg.norm(np.float64(x) + 1e-30, axis=1)[:, None] for m, x in features.items()
  }

  def score(q):
    newest = found.history[q][-3:]
    return sum(x @ x[newest].mean(0) for x in unit.values())

  assert_ranks(nearest_ranks(content_vectors(features), found, 3, WARM), by_hand(found, score))


def test_how_many_are_averaged_is_decided_by_cases_without_cold_items():
  """Users who stay near their newest item: older ones only mislead."""
  x_IV = content_vectors({"text": table(4)})
  rng = np.random.default_rng(5)
  history = [rng.permutation(WARM)[:9].astype(np.int32) + 1 for _ in range(200)]
  cosine_II = x_IV @ x_IV.T - 2 * np.eye(len(x_IV))
  item = [1 + int(cosine_II[h[-1], 1 : WARM + 1].argmax()) for h in history]
  kept = [q for q, i in enumerate(item) if i not in history[q]]
  found = make_cases(*([x[q] for q in kept] for x in (history, history, item)))
  by_last = ndcg_by_last(x_IV[: WARM + 1], found)
  assert max(by_last, key=by_last.get) == 1 and by_last[1] == 1.0 > by_last[5]


def test_chance_is_the_mean_over_random_orders():
  found, rng = random_cases(200), np.random.default_rng(6)
  drawn = {"all items": [], "cold only": []}
  for _ in range(150):
    for name, rank_Q in by_hand(found, lambda q: rng.random(WARM + COLD + 1)).items():
      drawn[name] += rank_Q
  for name, metrics in chance_metrics(found, WARM, COLD, (3, 5, 50)).items():
    for metric, x_Q in user_values(np.array(drawn[name]), (3, 5, 50)).items():
      np.testing.assert_allclose(metrics[metric]["mean"], x_Q.mean(), atol=0.01, err_msg=metric)
  assert chance_metrics(found, WARM, COLD, (50,))["cold only"]["HR@50"]["mean"] == 1


def test_the_targets_of_an_item_are_drawn_together():
  """Ten items, hit always or never: a hundred targets say no more than the ten items do."""
  item_Q = np.repeat(np.arange(10), 100)
  rank_Q = np.where(item_Q < 4, 1, 99)
  of_targets = summarize_ranks(rank_Q, (5,), resamples=400)["HR@5"]
  of_items = summarize_ranks(rank_Q, (5,), resamples=400, group_U=item_Q + 7)["HR@5"]
  assert of_items["mean"] == of_targets["mean"] == 0.4
  deviation = np.sqrt(0.4 * 0.6 / 10)
  np.testing.assert_allclose(of_items["high"] - of_items["low"], 3.92 * deviation, rtol=0.15)
  assert of_targets["high"] - of_targets["low"] < 0.08
  uneven = summarize_ranks(
    np.array([1, 9, 9, 9]), (5,), resamples=400, group_U=np.array([3, 1, 1, 1])
  )
  assert uneven["HR@5"] == {"mean": 0.25, "low": 0.0, "high": 1.0}
