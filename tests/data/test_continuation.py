"""A data set that continues another one, and all that does not."""

import numpy as np
import pytest

from mmesid_jax.data.continuation import find_difference
from mmesid_jax.data.dataset import Dataset

OLD = {7: [3, 1, 2], 4: [5, 5], 9: [1]}


def dataset(sequences: dict[int, list[int]], num_items: int = 5) -> Dataset:
  offsets = np.cumsum([0, *map(len, sequences.values())])
  items = np.array([item for items in sequences.values() for item in items], np.int32)
  return Dataset(items, offsets, np.array([*sequences]), num_items, "", None)


@pytest.mark.parametrize(
  "new",
  [OLD, {7: [3, 1, 2, 2, 4], 4: [5, 5, 1], 9: [1]}, {**OLD, 1: [2, 3]}],
  ids=["the same", "longer histories", "a new user"],
)
def test_later_events_and_new_users_continue_it(new):
  assert find_difference(dataset(new), dataset(OLD)) is None


@pytest.mark.parametrize(
  ("new", "says"),
  [
    ({7: [3, 1, 2], 4: [5, 5]}, "holds 2 users instead of at least 3"),
    ({1: [2], **OLD}, "has user 1 in row 1 instead of user 7"),
    ({7: [3, 1, 2], 9: [1], 4: [5, 5]}, "has user 9 in row 2 instead of user 4"),
    ({**OLD, 4: [5]}, "has 1 items of user 4 instead of at least 2"),
    ({**OLD, 4: [5, 2, 5]}, "has item 2 as number 2 of user 4 instead of 5"),
    ({**OLD, 9: [4, 1]}, "has item 4 as number 1 of user 9 instead of 1"),
    ({**OLD, 7: [3, 1, 2, 2], 4: [1, 5, 5]}, "has item 1 as number 1 of user 4 instead of 5"),
  ],
)
def test_anything_else_is_named(new, says):
  assert find_difference(dataset(new), dataset(OLD)) == says


def test_other_items_are_named():
  assert find_difference(dataset(OLD, 6), dataset(OLD)) == "holds 6 items instead of 5"
