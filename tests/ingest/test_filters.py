import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import filters
from mmesid_jax.ingest.events import collect_events

PAIRS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 3)), max_size=60)


def of(rows):
  return collect_events([("a.csv", ((f"u{u}", f"i{i}", t, 0.0) for u, i, t in rows))])


@given(PAIRS.filter(len), st.integers(0, 4), st.integers(0, 4))
def test_core_is_the_largest_part_in_which_all_have_enough(rows, users, items):
  """One user or item at a time is left out here, the last one found first."""
  found = of(rows)
  left = list(zip(found.user_E.tolist(), found.item_E.tolist(), range(len(found)), strict=True))
  while True:
    u = collections.Counter(row[0] for row in left)
    i = collections.Counter(row[1] for row in left)
    few = [("u", k) for k, n in u.items() if n < users] + [
      ("i", k) for k, n in i.items() if n < items
    ]
    if not few:
      break
    kind, k = few[-1]
    left = [row for row in left if row[0 if kind == "u" else 1] != k]
  kept = np.flatnonzero(filters.k_core(found.user_E, found.item_E, users, items))
  assert kept.tolist() == [row[2] for row in left]


@given(PAIRS)
def test_the_first_of_duplicates_stays(rows):
  found = of(rows)
  seen, first = set(), []
  for row in rows:
    first.append(row not in seen)
    seen.add(row)
  assert filters.first_of_duplicates(found, "exact").tolist() == first
  earliest = {}
  for n, (u, i, t) in enumerate(rows):
    earliest[u, i] = min(earliest.get((u, i), (t, n)), (t, n))
  kept = np.flatnonzero(filters.first_of_duplicates(found, "pair")).tolist()
  assert kept == sorted(n for _, n in earliest.values())
  assert filters.first_of_duplicates(found, "keep").all()


def test_without_times_nothing_is_known_to_be_the_same_event():
  found = collect_events([("a.csv", [("u", "x", None, 0.0)] * 3)])
  assert filters.first_of_duplicates(found, "exact").all()
  assert filters.first_of_duplicates(found, "pair").tolist() == [True, False, False]


def test_the_step_that_leaves_nothing_is_named():
  found = of([(0, 0, 0), (0, 1, 1)])
  steps = [
    filters.Step("all", lambda e: np.ones(len(e), bool), lambda e: "not asked for"),
    filters.Step("none", lambda e: np.zeros(len(e), bool), lambda e: f"keep {len(e)}"),
  ]
  passed = filters.apply_filters(found, steps)
  name, events, advice = next(passed)
  assert (name, len(events), advice) == ("all", 2, None)
  with pytest.raises(UserError, match="after the step 'none'; before it there were 2 .*; keep 2$"):
    next(passed)


def test_a_step_that_leaves_less_than_half_says_what_keeps_more():
  found = of([(u, u, 0) for u in range(7)])
  for count, expected in ((4, None), (3, "The step 'few' left 3 of 7 events; keep 7.")):
    step = filters.Step("few", lambda e, n=count: e.item_E < n, lambda e: f"keep {len(e)}")
    ((_, events, advice),) = filters.apply_filters(found, [step])
    assert len(events) == count and advice == expected


def test_steps_that_leave_less_than_half_together_say_it_once():
  found = of([(u, u, 0) for u in range(10)])
  steps = [
    filters.Step(f"{n}", lambda e, n=n: e.item_E < n, lambda e: f"keep {len(e)}") for n in (6, 4, 3)
  ]
  advice = [advice for _, _, advice in filters.apply_filters(found, steps)]
  assert advice == [None, "The step '4' left 4 of 6 events; keep 6.", None]


@given(PAIRS.filter(len), st.integers(2, 9), st.integers(0, 9))
def test_the_largest_core_that_keeps_enough(rows, users, items):
  found = of(rows)
  sizes = [(min(users, k), min(items, k)) for k in range(1, max(users, items))]
  counts = {s: int(filters.k_core(found.user_E, found.item_E, *s).sum()) for s in sizes}
  enough = [s for s in sizes if counts[s] >= 0.5 * len(rows)]
  assert filters.largest_core(found, users, items, 0.5) == (*enough[-1], counts[enough[-1]])
