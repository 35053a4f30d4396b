"""Items held out of a data set: what is left tells nothing of them."""

import json

import numpy as np
import pytest

from mmesid_jax.data.dataset import prepare_dataset
from mmesid_jax.data.features import read_features
from mmesid_jax.data.held_out_items import (
  ItemSplit,
  cold_cases,
  hold_out_items,
  valid_cases,
  write_warm_dataset,
)
from mmesid_jax.errors import UserError

SPLIT = ItemSplit(
  np.array([1, 3, 4, 6]), np.array([2, 5])
)  # warm 1 3 4 6 -> 1 2 3 4, cold 2 5 -> 5 6
SEQUENCES = {
  7: [1, 2, 3, 4, 5, 6],
  8: [2, 5],
  9: [5, 6, 2, 2],
  3: [4, 4, 2, 4],
  5: [1, 3, 4, 6, 5],
  6: [1, 5, 3],
}


def dataset(path, sequences=SEQUENCES, describe=True):
  path.mkdir(parents=True)
  lines = (f"{user} {' '.join(map(str, items))}\n" for user, items in sequences.items())
  (path / "sequences.txt").write_text("".join(lines))
  if describe:
    items = ({"item_id": i, "title": f"Item\u2028{i}"} for i in range(1, 7))  # a line to str only
    text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in items)
    (path / "items.jsonl").write_text(text)
  return prepare_dataset(path, path / "cache")


def table(seed=0):
  return np.random.default_rng(seed).normal(size=(7, 3)).astype(np.float32)


def test_a_fraction_of_the_items_is_drawn_by_the_seed():
  split = hold_out_items(200, 0.05, seed=1)
  assert len(split.cold) == 10
  np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(1, 201))
  assert all((np.diff(part) > 0).all() for part in split)
  np.testing.assert_array_equal(hold_out_items(200, 0.05, seed=1).cold, split.cold)
  assert set(hold_out_items(200, 0.05, seed=2).cold) != set(split.cold)
  often = np.bincount(np.concatenate([hold_out_items(20, 0.25, seed=s).cold for s in range(400)]))
  assert often[1:].min() > 60  # of 100 expected each: no item is favoured
  assert len(hold_out_items(10, 0.001, seed=0).cold) == 1


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.0, 0.9, float("nan")])
def test_impossible_fractions_are_refused(fraction):
  with pytest.raises(UserError, match="--fraction=.*of 10 items"):
    hold_out_items(10, fraction, seed=0)


def test_what_is_left_holds_the_warm_items_in_their_order(tmp_path):
  x_IV = table()
  write_warm_dataset(dataset(tmp_path / "all"), SPLIT, {"text": x_IV}, tmp_path / "warm")
  warm = prepare_dataset(tmp_path / "warm", tmp_path / "cache")
  assert warm.num_items == 4
  found = {int(user): warm.sequence(row).tolist() for row, user in enumerate(warm.users)}
  assert found == {7: [1, 2, 3, 4], 9: [4], 3: [3, 3, 3], 5: [1, 2, 3, 4], 6: [1, 2]}
  assert warm.titles()[1:] == [f"Item\u2028{i}" for i in (1, 3, 4, 6)]
  np.testing.assert_array_equal(
    read_features(tmp_path / "warm" / "text.npy", 4)[1:], x_IV[[1, 3, 4, 6]]
  )


def test_nothing_of_the_held_out_items_is_left(tmp_path):
  """Other vectors, titles and interactions of theirs give the same bytes."""
  sequences = {
    u: [i for i in s if i not in (2, 5)] + [5, 2] for u, s in SEQUENCES.items() if u != 8
  }
  other = table()
  other[[2, 5]] = 1e3
  for name, data, x_IV in (
    ("a", dataset(tmp_path / "all"), table()),
    ("b", dataset(tmp_path / "other", sequences), other),
  ):
    write_warm_dataset(data, SPLIT, {"text": x_IV}, tmp_path / name)
  for file in ("sequences.txt", "items.jsonl", "text.npy"):
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_number_of_items_stays_known_without_descriptions(tmp_path):
  """The largest warm item may have been met by nobody else than those who are left out."""
  data = dataset(tmp_path / "all", {1: [1, 2, 3], 2: [2, 6]}, describe=False)
  write_warm_dataset(
    data, ItemSplit(np.array([1, 2, 3, 5, 6]), np.array([4])), {}, tmp_path / "warm"
  )
  assert prepare_dataset(tmp_path / "warm", tmp_path / "cache").num_items == 5


def test_cases_are_first_meetings_behind_a_warm_item(tmp_path):
  data = dataset(tmp_path / "all")
  write_warm_dataset(data, SPLIT, {}, tmp_path / "warm")
  found, later_Q = cold_cases(data, SPLIT, prepare_dataset(tmp_path / "warm", tmp_path / "cache"))
  expected = [  # user 8 had no warm item, 9 had met item 5 -> 6 before, 2 -> 5 counts once
    ([1], {1}, 5, False),  # user 7: trains on 1 2 of 1 2 3 4
    ([1, 2, 3], {1, 2, 3, 5}, 6, True),
    ([4], {4, 6}, 5, True),  # user 9: one warm item, which trains
    ([3, 3], {3}, 5, True),  # user 3: trains on one of three
    ([1, 2, 3, 4], {1, 2, 3, 4}, 6, True),
    ([1], {1}, 6, False),  # user 6: two warm items, both train
  ]
  assert len(found) == len(expected) == len(later_Q)
  for q, (history, had, item, later) in enumerate(expected):
    assert found.history[q].tolist() == history
    assert set(found.had_QX[q]) - {0} == had
    assert (found.item_Q[q], later_Q[q]) == (item, later)


def test_validation_cases_are_the_targets_before_the_last(tmp_path):
  write_warm_dataset(dataset(tmp_path / "all"), SPLIT, {}, tmp_path / "warm")
  found = valid_cases(prepare_dataset(tmp_path / "warm", tmp_path / "cache"))
  assert [h.tolist() for h in found.history] == [[1, 2], [1, 2]]  # user 3's target is a repetition
  assert found.item_Q.tolist() == [3, 3]
