"""The temporal split against its definition in plain loops, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesid_jax.data.dataset import (
  Dataset,
  evaluated_users,
  popularity,
  prepare_dataset,
  read_dataset,
)
from mmesid_jax.data.held_out_items import ItemSplit, cold_cases, valid_cases, write_warm_dataset
from mmesid_jax.data.history_pieces import evaluation_pieces, training_pieces
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.geometry import kendall_tau

LAYOUT = Layout(rows=2, row_length=400, targets=400)
AT = (0.5, 0.75)

# Users' interactions as (item, time), by user id; the times of a user ascend, ties among them.
PLAIN = {
  7: [(1, 10), (2, 20), (3, 50), (1, 90)],  # trains on two, has both targets
  9: [(2, 60), (3, 80)],  # has nothing before the cuts: its first item has no history
  4: [(1, 20), (1, 20), (3, 80)],  # nothing between the cuts
  5: [(2, 30)],  # only trains
}


def write(directory, users):
  directory.mkdir(parents=True, exist_ok=True)
  lines = (f"{u} {' '.join(str(item) for item, _ in events)}\n" for u, events in users.items())
  (directory / "sequences.txt").write_text("".join(lines))
  times = [time for events in users.values() for _, time in events]
  np.save(directory / "times.npy", np.array(times, np.int64))
  return directory


def by_loops(users, at):
  """Training parts, and (user, history, target) of validation and test, by the definition; and how
  many users are left out of either."""
  in_order = sorted(time for events in users.values() for _, time in events)
  valid_from, test_from = (in_order[int(share * len(in_order))] for share in at)
  train, targets, left_out = {}, {"valid": [], "test": []}, {"valid": 0, "test": 0}
  for user, events in users.items():
    train[user] = [item for item, time in events if time < valid_from]
    for part, begin, end in (("valid", valid_from, test_from), ("test", test_from, float("inf"))):
      for place, (item, time) in enumerate(events):
        if begin <= time < end:
          history = [item for item, _ in events[:place]]
          if history:
            targets[part].append((user, history, item))
          else:
            left_out[part] += 1
          break
  return train, targets, left_out


def test_the_oracle_is_right_where_the_split_is_known_by_hand():
  train, targets, left_out = by_loops(PLAIN, AT)
  assert train == {7: [1, 2], 9: [], 4: [1, 1], 5: [2]}
  assert targets["valid"] == [(7, [1, 2], 3)]
  assert targets["test"] == [(7, [1, 2, 3], 1), (9, [2], 3), (4, [1, 1], 3)]
  assert left_out == {"valid": 1, "test": 0}


events = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 30)), min_size=1, max_size=9).map(
  lambda found: sorted(found, key=lambda event: event[1])
)


@settings(max_examples=50)
@given(
  st.dictionaries(st.integers(0, 99), events, min_size=1, max_size=12),
  st.sampled_from([AT, (0.8, 0.9), (0.1, 0.2), (0.3, 0.99)]),
)
def test_the_split_is_its_definition(tmp_path_factory, users, at):
  source = write(tmp_path_factory.mktemp("source"), users)
  train, targets, left_out = by_loops(users, at)
  somebody = {"train": any(train.values()), "validate": targets["valid"], "test": targets["test"]}
  if nobody := [task for task, found in somebody.items() if not found]:
    shares = f"split_at={at[0]},{at[1]}"
    with pytest.raises(UserError, match=f"{shares}: cuts at .*leaves nobody to {nobody[0]}:"):
      read_dataset(source, at)
    return
  dataset = read_dataset(source, at)
  rows = {u: dataset.row(u) for u in users}
  user_of = {row: user for user, row in rows.items()}
  for user, items in train.items():
    assert dataset.sequence(rows[user])[: dataset.train_lengths[rows[user]]].tolist() == items
  last = max(t for u, n in enumerate(dataset.train_lengths) for _, t in users[user_of[u]][:n])
  trained = [item for items in train.values() for item in items]
  assert popularity(dataset).tolist() == [
    trained.count(item) for item in range(dataset.num_items + 1)
  ]
  pieces, counts = training_pieces(dataset, LAYOUT)
  assert counts.targets == len(trained)
  assert counts.users == sum(bool(items) for items in train.values())
  for part, expected in targets.items():
    pieces = evaluation_pieces(dataset, LAYOUT, part)
    found = [
      (user_of[u], dataset.sequence(u)[start:first].tolist(), dataset.sequence(u)[first])
      for u, start, stop, first in zip(*pieces, strict=True)
    ]
    assert found == expected
    assert (pieces.stop == pieces.first_target + 1).all()
    assert evaluated_users(dataset, part).tolist() == [rows[u] for u, _, _ in expected]
    # nothing trains that is later than any target
    assert all(users[user_of[u]][t][1] > last for u, t in zip(*pieces[::3], strict=True))
  assert dataset.split.left_out == left_out
  new = [(u, h, item) for u, h, item in targets["valid"] if item not in h]
  cases = valid_cases(dataset)
  assert [x.tolist() for x in cases.history] == [h for _, h, _ in new]
  assert cases.item_Q.tolist() == [item for _, _, item in new]
  refit, cut = dataset.refitted(), sorted(t for events in users.values() for _, t in events)
  cut = cut[int(at[1] * len(cut))]
  for user, events in users.items():
    trained = refit.sequence(rows[user])[: refit.train_lengths[rows[user]]].tolist()
    assert trained == [item for item, time in events if time < cut]
  assert_only_the_test_is_evaluated(refit, dataset)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_a_refit_trains_on_all_but_the_last_item_of_users_who_are_tested(lengths):
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  items = np.arange(1, offsets[-1] + 1, dtype=np.int32)
  dataset = Dataset(items, offsets, np.arange(len(lengths)), len(items), "abc", None)
  refit = dataset.refitted()
  expected = [length - 1 if length > 2 else length for length in lengths]
  assert refit.train_lengths.tolist() == expected
  assert popularity(refit).sum() == sum(expected)
  assert_only_the_test_is_evaluated(refit, dataset)
  assert dataset.train_lengths.tolist() == [n - 2 if n > 2 else n for n in lengths]


def assert_only_the_test_is_evaluated(refit, dataset):
  """Nobody is validated, and the test has the same users, histories and targets."""
  assert not len(evaluated_users(refit, "valid"))
  found, expected = (evaluation_pieces(data, LAYOUT, "test") for data in (refit, dataset))
  np.testing.assert_array_equal(np.stack(found), np.stack(expected))
  assert refit.split.left_out == dataset.split.left_out | {"valid": 0}
  assert refit.fingerprint != dataset.fingerprint


def test_an_example_by_hand(tmp_path):
  """10 interactions at 10 20 20 20 30 | 50 60 | 80 80 90: half of them before 50."""
  dataset = prepare_dataset(write(tmp_path / "source", PLAIN), tmp_path / "cache", AT)
  assert (dataset.temporal_cuts.valid_from, dataset.temporal_cuts.test_from) == (50, 80)
  assert dataset.train_lengths.tolist() == [2, 0, 2, 1]
  assert {n: x.tolist() for n, x in dataset.split.targets.items()} == {
    "valid": [2, -1, -1, -1],
    "test": [3, 1, 2, -1],
  }
  assert dataset.split.left_out == {"valid": 1, "test": 0}
  assert popularity(dataset).tolist() == [0, 3, 2, 0]
  assert isinstance(dataset.temporal_cuts.times, np.memmap)


def test_distances_are_to_the_test_target(tmp_path):
  """A user who has items behind the target counts as one who has none."""
  rng = np.random.default_rng(0)
  users = {}
  for user in range(20):
    times = sorted(rng.integers(0, 50, 9).tolist())
    users[user] = list(zip((rng.permutation(9) + 1).tolist(), times, strict=True))
  dataset = read_dataset(write(tmp_path / "whole", users), AT)
  stops = dict(zip(users, dataset.split.targets["test"] + 1, strict=True))
  cut = {u: users[u][: stops[u]] for u in users if stops[u] >= 3}
  assert 0 < sum(map(len, cut.values())) < sum(map(len, users.values()))
  one, other = rng.normal(size=(2, 10, 3))
  found = kendall_tau(one, other, dataset)
  expected = kendall_tau(one, other, read_dataset(write(tmp_path / "cut", cut)))
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_fingerprint_knows_times_and_cuts_and_leave_one_out_does_not(tmp_path):
  source = write(tmp_path / "source", PLAIN)
  without = prepare_dataset(source, tmp_path / "a").fingerprint
  one = prepare_dataset(source, tmp_path / "b", AT).fingerprint
  others = {prepare_dataset(source, tmp_path / "b", (0.5, 0.9)).fingerprint, without}
  moved = PLAIN | {9: [(2, 60), (3, 81)]}  # the same targets
  write(source, moved)
  others.add(prepare_dataset(source, tmp_path / "b", AT).fingerprint)
  assert len(others | {one}) == 4
  assert prepare_dataset(source, tmp_path / "a").fingerprint == without
  write(source, PLAIN)
  assert prepare_dataset(source, tmp_path / "c", AT).fingerprint == one
  assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
    *("dataset.json", "items.npy", "offsets.npy", "users.npy")
  ]


def test_a_cache_is_built_again_for_other_times_and_only_then(tmp_path):
  source = write(tmp_path / "source", PLAIN)
  prepare_dataset(source, tmp_path / "cache", AT)

  def written():
    return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}

  before = written()
  assert "times.npy" in before
  assert prepare_dataset(source, tmp_path / "cache", (0.5, 0.9)).temporal_cuts.test_from == 90
  assert written() == before  # where it is cut is not cached
  write(source, PLAIN | {4: [(1, 20), (1, 20), (3, 70)]})
  changed = prepare_dataset(source, tmp_path / "cache", AT)
  assert changed.temporal_cuts.test_from == 70 and written() != before
  (tmp_path / "cache" / "times.npy").write_bytes(b"")
  assert prepare_dataset(source, tmp_path / "cache", AT).temporal_cuts.test_from == 70


BAD_TIMES = {
  "missing": (None, r"times\.npy: no such file; a temporal split needs .*split=leave_one_out"),
  "short": (np.arange(9), r"times\.npy: 9 times; expected 10, one for each item of sequences\.txt"),
  "long": (np.arange(11), r"times\.npy: 11 times; expected 10"),
  "float": (np.arange(10.0), r"times\.npy: float64 of shape \[10\]; expected int64 \[inter"),
  "2-d": (np.zeros((10, 1), np.int64), r"times\.npy: int64 of shape \[10, 1\]; expected int64"),
  "back": (
    np.array([1, 2, 3, 4, 0, 0, 1, 2, 1, 0]),  # users of 4, 2, 3 and 1 items
    r"times\.npy: row 8 is earlier than row 7, both of the user on sequences\.txt:3; expected .*ol",
  ),
  "objects": (np.array([None] * 10), r"times\.npy: not a plain \.npy table \(it holds python"),
}


@pytest.mark.parametrize("name", BAD_TIMES)
def test_bad_times_name_file_and_row(tmp_path, name):
  times, message = BAD_TIMES[name]
  source = write(tmp_path / "source", PLAIN)
  (source / "times.npy").unlink()
  if times is not None:
    np.save(source / "times.npy", times, allow_pickle=True)
  with pytest.raises(UserError, match=message) as caught:
    prepare_dataset(source, tmp_path / "cache", AT)
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "cache").exists()
  prepare_dataset(source, tmp_path / "cache")  # leave-one-out reads no times


@pytest.mark.parametrize(
  ("users", "message"),
  [
    ({1: [(1, 5), (2, 5)]}, "1970-01-01T00:00:05 and .*nobody to train: no item is before"),
    ({1: [(1, 1), (2, 2), (3, 3)], 2: [(1, 9)] * 9}, "to validate: nobody has an item between"),
    ({1: [(1, 1), (2, 3)], 2: [(1, 2)], 3: [(2, 4)]}, "to test: nobody has an item from the sec"),
  ],
)
def test_cuts_that_leave_nobody_say_for_what(tmp_path, users, message):
  with pytest.raises(UserError, match=f"--config.data.split_at=0.5,0.75: cuts at .*{message}"):
    read_dataset(write(tmp_path, users), AT)


def test_items_are_held_out_of_a_data_set_with_times(tmp_path):
  """Item 3 is cold: what is left has the times of what is left, and is cut by those."""
  users = {
    7: [(1, 10), (3, 20), (2, 50), (1, 90)],
    8: [(3, 15)],
    4: [(1, 20), (2, 30), (3, 80)],
    5: [(3, 40), (2, 60), (1, 95)],
    6: [(1, 10), (3, 12), (2, 25)],
  }
  dataset = prepare_dataset(write(tmp_path / "all", users), tmp_path / "cache", AT)
  split = ItemSplit(np.array([1, 2]), np.array([3]))
  write_warm_dataset(dataset, split, {}, tmp_path / "warm")
  left = prepare_dataset(tmp_path / "warm", tmp_path / "warm_cache", AT)
  assert left.users.tolist() == [7, 4, 5, 6]
  assert left.temporal_cuts.times.tolist() == [10, 50, 90, 20, 30, 60, 95, 10, 25]
  assert left.train_lengths.tolist() == [1, 1, 0, 2]  # 10 10 20 25 | 30 50 | 60 90 95
  cases, later_Q = cold_cases(dataset, split, left)
  assert [h.tolist() for h in cases.history] == [[1], [1, 2], [1]]
  assert later_Q.tolist() == [True, True, False]
