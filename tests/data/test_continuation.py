"""A data set that continues another one, and all that does not."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

from mmesid_jax.data.continuation import find_difference, find_other_item, find_other_titles
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


def with_items(folder: pathlib.Path, rows: list[dict] | None) -> Dataset:
  """The data set whose folder has these lines in items.jsonl; None = no such file."""
  if rows is None:
    return dataset(OLD, 3)
  folder.mkdir()
  lines = (json.dumps({"item_id": n, **row}) + "\n" for n, row in enumerate(rows, 1))
  (folder / "items.jsonl").write_text("".join(lines))
  return dataclasses.replace(dataset(OLD, 3), items_path=str(folder / "items.jsonl"))


def keyed(keys: str, title: str = "") -> list[dict]:
  return [{"key": key, "title": title + key} for key in keys]


def titled(titles: str) -> list[dict]:
  return [{"title": None if title == "-" else title} for title in titles]


@pytest.mark.parametrize(
  ("new", "old", "other", "doubt"),
  [
    (keyed("abc"), keyed("abc"), None, None),
    (keyed("abc", "new "), keyed("abc"), None, None),  # a title may be corrected
    (keyed("acb"), keyed("abc"), "has item 2 with the key 'c' instead of 'b'", None),
    (titled("abc"), titled("abc"), None, None),
    (titled("ab-"), titled("-bc"), None, None),
    (titled("cba"), titled("abc"), None, "2 of 3 .* another title, .* 1: 'c' instead of 'a'"),
    (titled("aac"), keyed("abc"), None, "1 of 3 items has another title, .* 2: 'a' instead of 'b'"),
    (None, None, None, None),
    (None, titled("abc"), None, "neither keys nor titles of both can be compared"),
    (keyed("abc"), None, None, "neither keys nor titles of both can be compared"),
    (None, titled("---"), None, None),
  ],
)
def test_items_are_compared_by_keys_else_by_titles(tmp_path, new, old, other, doubt):
  of_new, of_old = with_items(tmp_path / "new", new), with_items(tmp_path / "old", old)
  assert find_other_item(of_new, of_old) == other
  found = find_other_titles(of_new, of_old)
  if other is None:
    assert (found is None) == (doubt is None)
    assert doubt is None or re.search(doubt, found)
