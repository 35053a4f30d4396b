"""Targets that repeat, against a loop over users."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.data import split as splits
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.repeats import Repeats, count_repeats, describe_repeats, repeated_targets

sequences = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=9), min_size=1, max_size=8)


def dataset(lists, cuts=None) -> Dataset:
  offsets = np.cumsum([0, *map(len, lists)])
  items = np.int32([item for items in lists for item in items])
  return Dataset(items, offsets, np.arange(1, len(lists) + 1), 6, "", None, cuts)


def expected(data: Dataset, part: str) -> list[bool]:
  found = []
  for user, place in enumerate(data.split.targets[part]):
    if place != splits.NO_TARGET:
      items = data.sequence(user).tolist()
      found.append(items[place] in items[:place])
  return found


@given(sequences, st.booleans())
def test_repeats_are_those_that_a_loop_finds(lists, temporal):
  times = np.concatenate([np.arange(len(items)) for items in lists])
  data = dataset(lists, splits.TemporalCuts(times, 2, 4) if temporal else None)
  counts = count_repeats(data)
  for part in ("valid", "test"):
    assert repeated_targets(data, part).tolist() == expected(data, part)
    assert counts[part] == (len(expected(data, part)), sum(expected(data, part)))


def test_the_line_says_how_many_and_what_to_do_where_it_matters():
  """As in the shop where it was found: 8.2 % and 4.6 %."""
  line = describe_repeats({"valid": Repeats(1000, 82), "test": Repeats(1000, 46)})
  assert "82 of 1,000 (8.2%) of the valid items, 46 of 1,000 (4.6%) of the test items" in line
  assert "--config.evaluation.select=unmasked/nDCG@10" in line and "--repeat" in line
  assert describe_repeats({"valid": Repeats(1000, 9), "test": Repeats(1000, 10)})
  assert describe_repeats({"valid": Repeats(1000, 9), "test": Repeats(1000, 9)}) is None
  assert describe_repeats({"valid": Repeats(0, 0), "test": Repeats(0, 0)}) is None
