"""Transitions of new events in the tables of a served blend, against a count of all events."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesid_jax.data.transitions import count_transitions
from mmesid_jax.serving import live_counts
from mmesid_jax.serving.live_counts import LiveCounts, NewEvents, _add_to_row, new_pairs
from mmesid_jax.serving.ranker import Ranker

ITEMS, WINDOW, DECAY = 40, 3, 0.7

histories = st.lists(
  st.tuples(
    st.lists(st.integers(1, ITEMS), max_size=8), st.lists(st.integers(1, ITEMS), max_size=5)
  ),
  min_size=1,
  max_size=5,
)


def counted_again(pairs_of_lists) -> dict[int, dict[int, float]]:
  """The counts that the second lists add, by `count_transitions` of all events."""
  items = [item for old, new in pairs_of_lists for item in (*old, *new)]
  users = [u for u, (old, new) in enumerate(pairs_of_lists) for _ in (*old, *new)]
  is_new = [flag for old, new in pairs_of_lists for flag in [False] * len(old) + [True] * len(new)]
  sizes = {"window": WINDOW, "decay": DECAY, "followers": ITEMS}
  table = count_transitions(
    np.array(items, int), np.array(users, int), ITEMS, counted_E=np.array(is_new, bool), **sizes
  )
  return {
    item: {f: c for f, c in zip(follower_K.tolist(), count_K.tolist(), strict=True) if c > 0}
    for item, (follower_K, count_K) in enumerate(
      zip(table.follower_IK, table.count_IK, strict=True)
    )
    if count_K.any()
  }


@given(histories)
@settings(max_examples=60)
def test_new_events_add_what_a_count_of_all_events_adds(pairs_of_lists):
  events = [NewEvents([*old, *new], len(new)) for old, new in pairs_of_lists]
  found = new_pairs(events, WINDOW, DECAY)
  expected = counted_again(pairs_of_lists)
  assert found.keys() == expected.keys()
  for item, followers in expected.items():
    assert found[item] == pytest.approx(followers, rel=1e-5)


def test_a_full_row_lets_the_weakest_go():
  follower_K, count_K, outside = np.int32([7, 3, 9]), np.float32([5, 2, 1]), {}
  _add_to_row(8, follower_K, count_K, {4: 0.5, 3: 1.0}, outside)  # too weak for a place; known
  assert follower_K.tolist() == [7, 3, 9] and count_K.tolist() == [5, 3, 1]
  _add_to_row(8, follower_K, count_K, {4: 1.5, 9: 0.5}, outside)  # 0.5 is not forgotten
  assert follower_K.tolist() == [7, 3, 4] and count_K.tolist() == [5, 3, 2]
  _add_to_row(8, follower_K, count_K, {9: 1.5}, outside)  # nor are 1 and 0.5
  assert follower_K.tolist() == [7, 3, 9] and count_K.tolist() == [5, 3, 3]
  _add_to_row(8, follower_K, empty := np.zeros(3, np.float32), {0: 1.0, 7: 2.0}, outside)
  assert dict(zip(follower_K.tolist(), empty.tolist(), strict=True)).items() >= {(0, 1.0), (7, 2.0)}


def test_one_by_one_is_as_good_as_all_at_once():
  """A follower that comes in many small steps, to a row that is full."""
  rng = np.random.default_rng(0)
  drawn = rng.integers(1, 9, 300).tolist(), rng.random(300).tolist()
  steps = list(zip(*drawn, strict=True))
  totals = {f: sum(a for g, a in steps if g == f) for f in range(1, 9)}
  follower_K, count_K, outside = np.zeros(3, np.int32), np.zeros(3, np.float32), {}
  for follower, amount in steps:
    _add_to_row(5, follower_K, count_K, {follower: amount}, outside)
  best = sorted(totals, key=totals.get)[-3:]
  assert sorted(follower_K.tolist()) == sorted(best)
  found = dict(zip(follower_K.tolist(), count_K.tolist(), strict=True))
  assert found == pytest.approx({f: totals[f] for f in best}, rel=1e-4)


def test_tables_and_answers_change_and_nothing_else(blended, monkeypatch):
  monkeypatch.setattr(live_counts, "ROWS", 3)  # in several steps
  changed, before = Ranker.load(blended), Ranker.load(blended)
  events = [NewEvents([1, 2, 3, 4, 5], 2), NewEvents([1, 2, 3, 4], 1), NewEvents([9], 1)]
  counts = LiveCounts(changed, WINDOW, DECAY)
  counts.warm()
  counts.add(events)
  added = new_pairs(events, WINDOW, DECAY)
  new, old = changed.model.evidence, before.model.evidence

  def as_dict(evidence, item):
    follower_K, count_K = (
      np.asarray(t[...][item]) for t in (evidence.follower_IK, evidence.count_IK)
    )
    return {f: c for f, c in zip(follower_K.tolist(), count_K.tolist(), strict=True) if c > 0}

  for item in range(ITEMS + 1):
    expected = as_dict(old, item)
    for follower, amount in added.get(item, {}).items():
      expected[follower] = expected.get(follower, 0) + amount
    assert as_dict(new, item) == pytest.approx(expected)
  place = changed.sources.index("transitions")
  tops = [r.top_items([[3], [20]], ITEMS, repeat=True, reasons=True) for r in (changed, before)]
  parts = [
    [
      dict(zip(*of, strict=True))
      for of in zip(top.item_EA.tolist(), top.part_EAO[..., place], strict=True)
    ]
    for top in tops
  ]
  assert parts[0][0][4] > parts[1][0][4] + 0.01
  assert parts[0][1] == pytest.approx(parts[1][1], abs=1e-6)
