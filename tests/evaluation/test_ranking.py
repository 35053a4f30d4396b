"""Ranks against a numpy sort; metrics against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmesid_jax.evaluation.ranking import difference_over_seeds, summarize_ranks, target_ranks


def oracle(score_I, target, history):
  """The target's place in a stable sort in which it comes after all that tie with it."""
  candidates = [i for i in range(1, len(score_I)) if i not in history or i == target]
  by_score = sorted(candidates, key=lambda i: (-score_I[i], i == target))
  return by_score.index(target) + 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), distinct=st.sampled_from([2, 5, 1000]))
def test_ranks_equal_a_sort_with_ties_and_masks(seed, distinct):
  rng = np.random.default_rng(seed)
  score_QI = rng.integers(0, distinct, (6, 21)).astype(np.float32)
  score_QI[:, 0] = 10**6  # padding would win, were it a candidate
  target_Q = rng.integers(1, 21, 6)
  history_QH = rng.integers(0, 21, (6, 4))
  history_QH[history_QH == target_Q[:, None]] = 0
  masked_Q, unmasked_Q = target_ranks(score_QI, target_Q, history_QH)
  for q in range(6):
    assert masked_Q[q] == oracle(score_QI[q], target_Q[q], set(history_QH[q].tolist()))
    assert unmasked_Q[q] == oracle(score_QI[q], target_Q[q], set())


def test_a_target_in_its_own_history_ranks_last_when_masked():
  score_QI = np.array([[0, 9, 1, 2, 3]], np.float32)
  masked_Q, unmasked_Q = target_ranks(score_QI, np.array([1]), np.array([[1, 0]]))
  assert (int(masked_Q[0]), int(unmasked_Q[0])) == (4, 1)


@pytest.mark.parametrize("score", [0.0, np.nan])
def test_a_scorer_that_says_nothing_gets_nothing(score):
  masked_Q, unmasked_Q = target_ranks(
    np.full((3, 31), score, np.float32), np.array([1, 15, 30]), np.zeros((3, 2), np.int64)
  )
  assert unmasked_Q.tolist() == masked_Q.tolist() == [30, 30, 30]


def test_metrics_by_hand():
  found = summarize_ranks(np.array([1, 3, 6]), (5,))
  assert found["HR@5"]["mean"] == pytest.approx(2 / 3)
  assert found["nDCG@5"]["mean"] == pytest.approx((1 + 1 / 2) / 3)  # 1/log2(2), 1/log2(4), 0
  assert found["MRR@5"]["mean"] == pytest.approx((1 + 1 / 3) / 3)


def test_bootstrap_intervals_hold_the_mean_and_narrow_with_users():
  rng = np.random.default_rng(0)

  def interval(users):
    found = summarize_ranks(rng.integers(1, 30, users), (10,), resamples=400)["HR@10"]
    assert found["low"] <= found["mean"] <= found["high"]
    return found["high"] - found["low"]

  assert interval(10_000) < interval(100) / 4


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("of_seed, of_user", [(0, 1), (0.2, 1), (1, 1), (3, 1), (0.2, 0), (0.2, 3)])
def test_an_interval_holds_the_truth_in_95_of_100_experiments(seeds, of_seed, of_user):
  """The truth is 0. of_seed, of_user: deviations of the effects of a seed and of a group of users;
  that of the rest is 1."""
  rng, users, experiments = np.random.default_rng(seeds), 32, 1000
  held = held_by_users_alone = 0
  for _ in range(experiments):
    effects = of_seed * rng.normal(size=(seeds, 1)) + of_user * rng.normal(size=users)
    difference_SU = effects + rng.normal(size=(seeds, users))
    _, low, high = difference_over_seeds(difference_SU)
    held += low <= 0 <= high
    mean_U = difference_SU.mean(0)
    low, high = stats.t.interval(0.95, users - 1, mean_U.mean(), stats.sem(mean_U))
    held_by_users_alone += low <= 0 <= high
  assert 0.9 < held / experiments < 0.99
  if of_seed >= 1:
    assert held_by_users_alone / experiments < 0.65


def test_an_interval_over_seeds_is_students_where_only_seeds_or_only_users_differ():
  column_S, row_U = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 5.0, 6.0])
  for difference_SU, values in (
    (np.tile(column_S[:, None], 4), column_S),
    (np.tile(row_U, (3, 1)), row_U),
  ):
    mean, *ends = difference_over_seeds(difference_SU)
    assert mean == pytest.approx(values.mean())
    expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose(ends, expected)
  assert difference_over_seeds(np.full((3, 4), 0.5)) == (0.5, 0.5, 0.5)
  for shape in ((1, 4), (4, 1)):
    with pytest.raises(ValueError, match="expected at least 2 of each"):
      difference_over_seeds(np.zeros(shape))
