"""Batches of ids for training and evaluation.

Feature tables are on the device, so a batch is a few kilobytes and the loader is never the
bottleneck. The training batches are endless grain datasets whose state is one integer.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.packing import Batch, Packer
from mmesid_jax.data.row_layout import Layout, Pieces


class Epoch(NamedTuple):
  """Number of batches in an epoch, and the share of their tokens that is not padding."""

  batches: int
  fill: float


class PackedBatches(grain.IterDataset):
  """Endless batches of shared-prefix rows; pieces are shuffled again every epoch.

  A batch takes pieces from the shuffled stream until the next one does not fit; that one is the
  first of the next batch. No piece is dropped or repeated, and epochs follow each other without a
  gap. Every process packs all batches, so a run may continue with another number of processes.
  """

  def __init__(
    self,
    dataset: Dataset,
    pieces: Pieces,
    layout: Layout,
    *,
    seed: int,
  ):
    super().__init__()
    self.dataset, self.pieces, self.layout = dataset, pieces, layout
    self.order = grain.MapDataset.range(len(pieces)).seed(seed).shuffle().repeat()

  def __iter__(self) -> "PackedBatchIterator":
    return PackedBatchIterator(self)

  def fill(self, packer: Packer, position: int) -> int:
    """Adds pieces from a position of the stream on; returns that of the first that did not fit."""
    while True:
      piece = int(self.order[position])
      user, start, stop, first_target = (int(column[piece]) for column in self.pieces)
      items = self.dataset.sequence(user)[start:stop]
      if not packer.add(piece, items, first_target - start):
        if not len(packer):
          raise ValueError(f"a piece of {len(items)} items does not fit {self.layout}")
        return position
      position += 1

  def first_epoch(self) -> Iterator[Packer]:
    """Packs the batches of the first epoch; the last may hold pieces of the second epoch."""
    position = 0
    while position < len(self.pieces):
      packer = Packer(self.layout)
      position = self.fill(packer, position)
      yield packer

  def epoch(self) -> Epoch:
    """Packs the first epoch to measure it, for schedules and for a report."""
    batches, tokens = 0, 0
    for packer in self.first_epoch():
      batches, tokens = batches + 1, tokens + packer.tokens
    return Epoch(batches, tokens / max(batches * self.layout.rows * self.layout.row_length, 1))

  def users(self, batch: Batch) -> list[int]:
    """Returns the ids of the users with a target in the batch, as sequences.txt has them."""
    pieces = np.unique(batch.piece_Q[batch.piece_Q >= 0])
    return sorted({int(u) for u in self.dataset.users[self.pieces.user[pieces]]})


class PackedBatchIterator(grain.DatasetIterator):
  """Iterator over PackedBatches; its state is the position of the next piece in the stream."""

  def __init__(self, source: PackedBatches):
    super().__init__()
    self._source, self._position = source, 0

  def __next__(self) -> Batch:
    packer = Packer(self._source.layout)
    self._position = self._source.fill(packer, self._position)
    return packer.batch()

  def get_state(self) -> dict[str, int]:
    return {"following": self._position}  # the key is part of checkpoints

  def set_state(self, state: dict[str, int]) -> None:
    self._position = state["following"]


def item_batches(num_items: int, batch: int, *, seed: int) -> grain.IterDataset:
  """Endless int64 [batch] arrays of item ids 1..num_items, shuffled again every epoch."""
  items = grain.MapDataset.range(1, num_items + 1).seed(seed).shuffle().repeat()
  # The training loop reads ahead in one thread. Sixteen more, grain's default for remote files,
  # would only wait for Python's lock, and make the main thread wait for it.
  read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return items.batch(batch).to_iter_dataset(read_options)


def batch_pieces(dataset: Dataset, pieces: Pieces, layout: Layout) -> Iterator[Batch]:
  """Packs every piece once, in order, as for evaluation. The last batch is padded."""
  return batch_sequences(
    [
      dataset.sequence(u)[a:b]
      for u, a, b in zip(pieces.user, pieces.start, pieces.stop, strict=True)
    ],
    layout,
    (pieces.first_target - pieces.start).tolist(),
  )


def batch_sequences(
  sequences: Sequence[np.ndarray], layout: Layout, first_targets: Sequence[int] | None = None
) -> Iterator[Batch]:
  """Packs the given sequences in order; piece_Q is the index of the sequence.

  first_targets: the targets of sequence i are its items from first_targets[i] on; None = all items.
  Raises ValueError for a sequence that does not fit an empty batch.
  """
  packer = Packer(layout)
  for i, items in enumerate(sequences):
    first = first_targets[i] if first_targets is not None else 0
    if packer.add(i, items, first):
      continue
    if len(packer):
      yield packer.batch()
      packer = Packer(layout)
    if not packer.add(i, items, first):
      raise ValueError(f"sequence {i} ({len(items)} items) does not fit {layout}")
  if len(packer):
    yield packer.batch()


def with_histories(batch: Batch, histories: Sequence[np.ndarray], columns: int) -> Batch:
  """The batch with the items before each target.

  histories: of each piece that has one target, oldest first; whole, even where a row holds only
  the newest items.
  columns: X, at least the items of the longest.
  """
  none = np.zeros(0, np.int32)
  of_targets = [histories[piece] if piece >= 0 else none for piece in batch.piece_Q]
  return batch._replace(history_QX=newest_first(of_targets, columns))


def newest_first(histories: Sequence[np.ndarray], columns: int) -> np.ndarray:
  """Histories, each oldest first, as int32 [E, columns], newest first; 0 = none."""
  history_EX = np.zeros((len(histories), columns), np.int32)
  for of_one_X, history in zip(history_EX, histories, strict=True):
    of_one_X[: len(history)] = history[::-1]
  return history_EX
