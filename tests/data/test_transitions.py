"""Transition counts, against loops over all pairs."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.data import transitions
from mmesid_jax.data.transitions import count_transitions

ITEMS = 6
HISTORIES = st.lists(st.lists(st.integers(1, ITEMS), max_size=9), min_size=1, max_size=8)


def events(histories) -> tuple[np.ndarray, np.ndarray]:
  items = np.array([item for history in histories for item in history], np.int32)
  users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
  return items, users


def count_pairs(histories, window: int, decay: float) -> dict[tuple[int, int], float]:
  found = collections.defaultdict(float)
  for history in histories:
    for place, follower in enumerate(history):
      for distance in range(1, min(window, place) + 1):
        found[history[place - distance], follower] += distance**-decay
  return found


def as_dict(table) -> dict[tuple[int, int], float]:
  return {
    (a, int(b)): float(count)
    for a, (row_K, count_K) in enumerate(zip(table.follower_IK, table.count_IK, strict=True))
    for b, count in zip(row_K, count_K, strict=True)
    if count > 0
  }


@given(HISTORIES, st.integers(1, 5), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 40))
def test_counts_equal_a_loop_over_pairs(histories, window, decay, pairs):
  """pairs: events of one block, so that items are spread over blocks in every way."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(transitions, "PAIRS", pairs)
    table = count_transitions(
      *events(histories), ITEMS, window=window, decay=decay, followers=ITEMS
    )
  assert as_dict(table) == pytest.approx(count_pairs(histories, window, decay), rel=1e-5)
  assert table.kept == pytest.approx(1)
  assert not table.follower_IK[0].any()


@given(HISTORIES, st.integers(1, 3))
def test_the_most_frequent_followers_are_kept_in_order(histories, followers):
  options = {"window": 3, "decay": 0.5}
  whole = count_transitions(*events(histories), ITEMS, **options, followers=ITEMS)
  cut = count_transitions(*events(histories), ITEMS, **options, followers=followers)
  assert (np.diff(whole.count_IK) <= 0).all()
  np.testing.assert_array_equal(cut.follower_IK, whole.follower_IK[:, :followers])
  np.testing.assert_array_equal(cut.count_IK, whole.count_IK[:, :followers])
  total = whole.count_IK.sum(dtype=float)
  assert cut.kept == pytest.approx(cut.count_IK.sum(dtype=float) / total if total else 1)


@given(HISTORIES, st.data())
def test_new_events_add_what_the_longer_histories_have_more(histories, data):
  known = [data.draw(st.integers(0, len(history))) for history in histories]
  options = {"window": 4, "decay": 0.5, "followers": ITEMS}
  is_new = np.concatenate(
    [np.arange(len(h)) >= n for h, n in zip(histories, known, strict=True)] or [[]]
  ).astype(bool)
  whole = as_dict(count_transitions(*events(histories), ITEMS, **options))
  before = [history[:n] for history, n in zip(histories, known, strict=True)]
  total = collections.Counter(as_dict(count_transitions(*events(before), ITEMS, **options)))
  total.update(as_dict(count_transitions(*events(histories), ITEMS, **options, counted_E=is_new)))
  assert dict(total) == pytest.approx(whole, rel=1e-5)
