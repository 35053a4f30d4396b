"""The stream of batches: nothing lost, nothing twice, and a state of one integer."""

import itertools
import threading

import grain
import numpy as np
import pytest

from mmesid_jax.data.batches import PackedBatches, batch_sequences, item_batches
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.history_pieces import training_pieces
from mmesid_jax.data.row_layout import Layout

LAYOUT = Layout(rows=2, row_length=24, targets=30, response=1)


def packed(seed=0, users=50) -> PackedBatches:
  lengths = np.random.default_rng(0).integers(1, 20, users)
  offsets = np.cumsum([0, *lengths])
  items = np.arange(1, offsets[-1] + 1, dtype=np.int32)
  data = Dataset(items, offsets, np.arange(users) + 1000, len(items), "", None)
  pieces, _ = training_pieces(data, LAYOUT)
  return PackedBatches(data, pieces, LAYOUT, seed=seed)


def targets(batches) -> list[int]:
  return [int(i) for batch in batches for i in batch.target_Q[batch.weight_Q > 0]]


def first_epoch(source: PackedBatches) -> list[int]:
  """The targets of the first epoch's pieces: the stream goes on behind them in the last batch."""
  found: dict[int, set[int]] = {}
  for batch in itertools.islice(source, source.epoch().batches):
    for q in np.flatnonzero(batch.weight_Q):
      found.setdefault(int(batch.piece_Q[q]), set()).add(int(batch.target_Q[q]))
  return [i for piece in list(found.values())[: source.pieces_an_epoch] for i in piece]


def test_an_epoch_holds_every_target_once_and_the_next_one_in_another_order():
  source = packed()
  count = int((source.pieces.stop - source.pieces.first_target).sum())
  stream = targets(itertools.islice(source, 3 * source.epoch().batches))
  first, second = stream[:count], stream[count : 2 * count]
  assert len(set(first)) == count and sorted(first) == sorted(second)
  assert first != second


def test_the_seed_decides_the_order():
  assert targets(itertools.islice(packed(), 3)) == targets(itertools.islice(packed(), 3))
  assert targets(itertools.islice(packed(), 3)) != targets(itertools.islice(packed(seed=1), 3))


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_restored_iterator_goes_on_with_the_same_batches(prefetch):
  def stream():
    source = packed()
    if prefetch:
      source = grain.experimental.ThreadPrefetchIterDataset(source, prefetch_buffer_size=4)
    return iter(source)

  whole = [next(i) for i in [stream()] for _ in range(9)]
  begun = stream()
  for _ in range(4):
    next(begun)
  state = begun.get_state()
  if not prefetch:
    assert list(state) == ["following"] and isinstance(state["following"], int)
  resumed = stream()
  resumed.set_state(state)
  for batch, expected in zip([next(resumed) for _ in range(5)], whole[4:], strict=True):
    for ours, theirs in zip(batch, expected, strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_epoch_counts_batches_and_the_tokens_in_use():
  source = packed()
  epoch = source.epoch()
  batches = list(itertools.islice(source, epoch.batches))
  used = np.mean([(batch.segment_RT > 0).mean() for batch in batches])
  assert epoch.fill == pytest.approx(used)
  assert len(set(targets(batches))) == int((source.pieces.stop - source.pieces.first_target).sum())
  short = targets(itertools.islice(source, epoch.batches - 1))
  assert len(short) < int((source.pieces.stop - source.pieces.first_target).sum())


def test_a_batch_can_name_its_users():
  source = packed()
  batch = next(iter(source))
  owners = np.searchsorted(source.dataset.offsets, batch.target_Q[batch.weight_Q > 0] - 1, "right")
  assert source.users(batch) == sorted(set((owners - 1 + 1000).tolist()))


def test_a_sequence_larger_than_a_batch_is_refused():
  with pytest.raises(ValueError, match="does not fit"):
    list(batch_sequences([np.arange(1, 40)], LAYOUT))


def test_sequences_in_order_lose_nobody_and_pad_the_last_batch():
  sequences = [np.arange(1, 2 + n % 7) for n in range(40)]
  batches = list(batch_sequences(sequences, LAYOUT))
  assert targets(batches) == [i for s in sequences for i in s]
  assert len({batch.target_Q.shape for batch in batches}) == 1


def test_item_batches_cover_the_catalogue_before_any_item_returns():
  batches = itertools.islice(item_batches(12, 8, seed=0), 6)
  stream = np.concatenate(list(batches)).reshape(4, 12)
  assert (np.sort(stream) == np.arange(1, 13)).all()
  assert (stream[0] != stream[1]).any()


def test_item_batches_start_no_threads():
  """grain's 16 doubled the time of everything that ran beside them."""
  before = {*threading.enumerate()}
  batches = iter(item_batches(12, 8, seed=0))
  next(batches)
  assert {*threading.enumerate()} <= before
