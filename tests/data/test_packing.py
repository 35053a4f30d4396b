"""Packing against brute force: which targets there are, and what each of them may see."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesid_jax.data.batches import batch_pieces
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.history_pieces import (
  CUTS_MATTER,
  describe_cuts,
  evaluation_pieces,
  training_pieces,
)
from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout, Pieces, with_capacity, with_rows_for

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=12)
layouts = st.builds(
  Layout,
  rows=st.integers(1, 3),
  row_length=st.integers(8, 70),
  targets=st.integers(4, 80),
  response=st.sampled_from([0, 1, 3]),
  codes=st.sampled_from([0, 0, 2]),
)


def dataset(lengths) -> Dataset:
  """No item occurs twice, so an item says which user and which place it comes from."""
  offsets = np.cumsum([0, *lengths])
  items = np.arange(1, offsets[-1] + 1, dtype=np.int32)
  return Dataset(items, offsets, np.arange(101, 101 + len(lengths)), len(items), "", None)


def trained(length: int) -> int:
  """Items of a user's training part: all but the last two, where there are three."""
  return length - 2 if length >= 3 else length


@given(lengths, layouts, st.integers(0, 2), st.sampled_from([0, 1, 5]))
def test_every_training_target_is_there_once(lengths, layout, min_history, targets_per_user):
  data = dataset(lengths)
  pieces, counts = training_pieces(
    data, layout, min_history=min_history, targets_per_user=targets_per_user
  )
  expected = []
  for user, length in enumerate(lengths):
    places = range(trained(length))[-targets_per_user or None :]
    expected += [(user, t) for t in places if t >= min_history]
  found = [(u, t) for u, _, stop, first in zip(*pieces, strict=True) for t in range(first, stop)]
  assert found == expected
  assert counts.targets == len(expected)
  assert counts.users == len({user for user, _ in expected})
  assert counts.pieces == len(pieces)


options = st.fixed_dictionaries(
  {
    "min_history": st.integers(0, 2),
    "targets_per_user": st.sampled_from([0, 1, 5, 30]),
    "targets_per_piece": st.sampled_from([0, 1, 2, 7]),
  }
)


@given(lengths, layouts, options)
def test_a_history_that_a_row_holds_is_whole(lengths, layout, options):
  """Whatever else shares the piece: a target is cut only where it would not fit a row alone."""
  data = dataset(lengths)
  pieces, counts = training_pieces(data, layout, **options)
  cut = set()
  for user, start, stop, first in zip(*pieces, strict=True):
    assert Packer(layout).add(0, data.sequence(user)[start:stop], first - start)
    fits_alone = first + layout.branch <= layout.row_length
    if fits_alone:
      assert start == 0
    else:
      cut.add(user)
      half = min((layout.row_length + 1) // 2, layout.row_length - layout.branch)
      assert first - start >= half
    for t in range(first, stop):
      assert start == 0 or t + layout.branch > layout.row_length
  assert counts.cut_users == len(cut)


@given(lengths, layouts, options)
def test_a_piece_ends_where_no_further_target_fits(lengths, layout, options):
  data = dataset(lengths)
  pieces, _ = training_pieces(data, layout, **options)
  for user, start, stop, first in zip(*pieces, strict=True):
    if stop == trained(lengths[user]) or stop - first == options["targets_per_piece"]:
      continue
    one_more = np.append(data.sequence(user)[start:stop], 0)
    assert not Packer(layout).add(0, one_more, first - start)


@given(lengths, layouts)
def test_shuffled_samples_see_no_less(lengths, layout):
  """A target alone sees the items that it sees with others in its piece, and the newest that fit
  where those are fewer than its history."""
  data = dataset(lengths)

  def seen(**options):
    parts = zip(*training_pieces(data, layout, **options)[0], strict=True)
    return {(u, t): start for u, start, stop, first in parts for t in range(first, stop)}

  together, apart = seen(), seen(targets_per_piece=1)
  assert apart == {(u, t): max(0, t - layout.longest_history) for u, t in together}
  assert all(apart[target] <= start for target, start in together.items())


@pytest.mark.parametrize("options", [{}, {"targets_per_user": 1}, {"targets_per_piece": 1}])
def test_a_history_of_100_items_is_whole_in_a_row_of_128(options):
  """With five response tokens, of which a row of 128 holds those of 21 targets."""
  data = dataset([103])  # 101 train: the last target has a history of 100
  layout = Layout(rows=1, row_length=128, targets=200, response=5)
  pieces, counts = training_pieces(data, layout, **options)
  assert not pieces.start.any() and pieces.stop[-1] == 101
  assert counts.cut_users == 0 and describe_cuts(counts, "row_length") is None


@given(lengths, layouts)
def test_the_row_lengths_that_would_do(lengths, layout):
  data = dataset(lengths)
  _, counts = training_pieces(data, layout)

  def cut_with(row_length: int) -> int:
    longer = dataclasses.replace(layout, row_length=row_length)
    return training_pieces(data, longer)[1].cut_users

  few, none = counts.row_lengths
  assert cut_with(few) <= CUTS_MATTER * counts.users and cut_with(none) == 0
  assert few <= none and all(n % 32 == 0 or n == layout.row_length for n in (few, none))
  says = describe_cuts(counts, "--config.a.row_length")
  assert (says is None) == (counts.cut_users <= CUTS_MATTER * counts.users)
  if says:
    assert f"--config.a.row_length={few} would cut" in says and f"{none} nobody" in says


@pytest.mark.parametrize(("short", "expected"), [(11, (64, 64)), (39, (32, 64))])
def test_the_row_length_leaves_out_the_longest_histories_of_few(short, expected):
  """One user of 12 is more than 3 %, one of 40 is less."""
  data = dataset([12] * short + [60])
  _, counts = training_pieces(data, Layout(rows=1, row_length=8, targets=80))
  assert counts.row_lengths == expected
  says = describe_cuts(counts, "row_length")
  assert says.startswith("100% of the users have histories longer than the 8 items that a row")
  assert f"row_length={expected[0]} would cut less than 3% of them, 64 nobody" in says


@given(lengths, layouts, st.sampled_from(["valid", "test"]))
def test_evaluation_reads_the_newest_items_before_the_held_out_one(lengths, layout, split):
  data = dataset(lengths)
  pieces = evaluation_pieces(data, layout, split)
  assert pieces.user.tolist() == [u for u, n in enumerate(lengths) if n >= 3]
  for user, start, stop, first in zip(*pieces, strict=True):
    target = lengths[user] - (2 if split == "valid" else 1)
    assert (first, stop) == (target, target + 1)
    assert start == max(0, target - layout.longest_history)


@settings(max_examples=60)
@given(lengths, layouts)
def test_a_packed_target_sees_its_own_history_and_nothing_else(lengths, layout):
  """Read back from the integers alone, with loops where the model has a mask."""
  data = dataset(lengths)
  pieces, _ = training_pieces(data, layout)
  batches = list(batch_pieces(data, pieces, layout))
  seen_by_target = {}
  for batch in batches:
    item_RT = batch.item_E[batch.slot_RT]
    assert item_RT.shape == batch.segment_RT.shape == (layout.rows, layout.row_length)
    assert (batch.segment_RT[item_RT > 0] > 0).all()
    for q in np.flatnonzero(batch.weight_Q):
      target, piece = int(batch.target_Q[q]), int(batch.piece_Q[q])
      assert (piece, target) not in seen_by_target
      first_code = int(batch.code_read_Q[q])
      assert (first_code > 0) == (layout.codes > 0)
      last = first_code + layout.codes - 1 if layout.codes else int(batch.read_Q[q])
      if layout.codes and (layout.response or not batch.read_Q[q]):
        assert batch.read_Q[q] == (first_code - 1 if layout.response else 0)
      if not last:
        seen_by_target[piece, target] = ([], [])
        continue
      r, t = divmod(last - 1, layout.row_length)
      trunk, branch = [], []
      for k in np.flatnonzero(batch.segment_RT[r] == batch.segment_RT[r, t]):
        position = int(batch.position_RT[r, k])
        if batch.branch_RT[r, k] == 0 and position < batch.horizon_RT[r, t]:
          trunk.append((position, int(item_RT[r, k])))
        elif batch.branch_RT[r, k] == batch.branch_RT[r, t] and batch.branch_RT[r, t]:
          assert item_RT[r, k] == 0
          place = int(batch.response_RT[r, k])
          assert batch.spelled_RT[r, k] == (target if place >= layout.response else 0)
          branch.append((position, place))
      seen_by_target[piece, target] = (sorted(trunk), branch)
  expected = {}
  for n, (user, start, stop, first) in enumerate(zip(*pieces, strict=True)):
    items = data.sequence(user).tolist()
    for t in range(first, stop):
      history = list(enumerate(items[start:t]))
      branch = [(t - start + s, s) for s in range(layout.branch)]
      expected[n, items[t]] = (history, branch)
  assert seen_by_target == expected


@given(lengths, layouts)
def test_what_is_not_used_is_padding(lengths, layout):
  data = dataset(lengths)
  pieces, _ = training_pieces(data, layout)
  for batch in batch_pieces(data, pieces, layout):
    padding_RT = batch.segment_RT == 0
    for name in ("slot_RT", "position_RT", "horizon_RT", "branch_RT", "response_RT", "spelled_RT"):
      x_RT = getattr(batch, name)
      assert x_RT.dtype == np.int32 and not x_RT[padding_RT].any(), name
    unused_Q = batch.weight_Q == 0
    assert (batch.piece_Q[unused_Q] == -1).all() and (batch.piece_Q[~unused_Q] >= 0).all()
    assert not batch.target_Q[unused_Q].any() and batch.target_Q[~unused_Q].all()
    assert not batch.read_Q[unused_Q].any() and not batch.code_read_Q[unused_Q].any()
    assert len(batch.item_E) == layout.rows * layout.row_length + 1 and batch.item_E[0] == 0


def test_first_fit_takes_the_first_row_with_room():
  packer = Packer(Layout(rows=2, row_length=8, targets=100))
  placed = [packer.add(n, np.arange(1, size + 2), 0) for n, size in enumerate([6, 5, 2, 3, 1])]
  assert placed == [True, True, True, True, False]  # rows of 6 + 2 and of 5 + 3 tokens are full
  assert packer.tokens == 16
  assert packer.batch().segment_RT.tolist() == [[1] * 6 + [2] * 2, [1] * 5 + [2] * 3]


@given(lengths, layouts)
def test_places_for_items_are_enough_for_every_piece_and_never_exceeded(lengths, layout):
  data = dataset(lengths)
  pieces, _ = training_pieces(data, layout)
  bounded = with_capacity(layout, pieces)
  assert bounded.item_places <= layout.item_places
  parts = []
  for batch in batch_pieces(data, pieces, bounded):  # raises for a piece that fits no batch
    items = batch.item_E[batch.slot_RT]
    assert set(items.ravel()) - {0} == set(batch.item_E) - {0}
    assert batch.item_E.shape == (bounded.item_places + 1,)
    parts.append(batch.target_Q[batch.weight_Q > 0])
  expected = [data.sequence(u)[first:stop] for u, _, stop, first in zip(*pieces, strict=True)]
  np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(expected))


def test_a_piece_without_places_for_its_items_waits_for_the_next_batch():
  """All items count, distinct or not, but for the last, which is a target only."""
  packer = Packer(Layout(rows=2, row_length=8, targets=100, items=5))
  assert packer.add(0, np.array([7, 7, 7, 7]), 0)
  assert not packer.add(1, np.array([1, 2, 3, 4]), 0)
  assert packer.add(2, np.array([1, 2, 3]), 0)
  assert not packer.add(3, np.array([1, 2]), 0) and packer.add(4, np.array([9]), 0)
  assert packer.batch().item_E.tolist() == [0, 1, 2, 7, 0, 0]


def test_rows_for_pieces_are_filled_by_targets():
  rng = np.random.default_rng(0)
  data = dataset(rng.integers(3, 30, 400).tolist())
  layout = Layout(rows=1, row_length=64, targets=100)
  pieces, _ = training_pieces(data, layout, targets_per_piece=1)
  batches = list(batch_pieces(data, pieces, with_rows_for(layout, pieces)))
  filled = [int(batch.weight_Q.sum()) for batch in batches[:-1]]
  assert np.mean(filled) > 80  # in order, not shuffled: neighbours are of one user and alike


def test_rows_are_what_the_targets_need_and_a_twentieth_more():
  layout = Layout(rows=1, row_length=100, targets=1000, response=2)
  start = np.zeros(4, int)
  pieces = Pieces(np.arange(4), start, start + 11, start + 6)  # 10 + 2 * 5 tokens for 5 targets
  assert with_rows_for(layout, pieces).rows == 42  # 1.05 * 4 * 1000 / 100
  assert with_rows_for(layout, pieces, multiple=8).rows == 48


def test_without_options_every_item_of_the_training_part_is_a_target():
  data = dataset([3, 12, 40])
  pieces, counts = training_pieces(data, Layout(rows=1, row_length=16, targets=99))
  assert (counts.users, counts.targets, counts.cut_users) == (3, 1 + 10 + 38, 1)
  assert counts.pieces == len(pieces)


def test_fewer_places_make_no_more_batches():
  rng = np.random.default_rng(0)
  data = dataset(rng.integers(3, 30, 400).tolist())
  layout = Layout(rows=4, row_length=64, targets=400, response=3)
  pieces, _ = training_pieces(data, layout)
  bounded = with_capacity(layout, pieces)
  assert bounded.targets < layout.targets / 2 and bounded.item_places < layout.item_places / 2
  count, expected = (len(list(batch_pieces(data, pieces, x))) for x in (bounded, layout))
  assert count <= 1.05 * expected
