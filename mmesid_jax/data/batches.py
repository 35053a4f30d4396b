"""Grain datasets that feed the stages: batches of ids, endless, whose state is one integer.

Feature tables live on the device, so a batch is a few kilobytes and the loader is never the
bottleneck.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.packing import Batch, Layout, Packer, Pieces


class Epoch(NamedTuple):
  """How many batches an epoch takes, and which share of their tokens is in use (not padding)."""

  batches: int
  fill: float


class PackedBatches(grain.IterDataset):
  """Endless batches of shared-prefix rows; pieces are shuffled anew every epoch.

  A batch takes pieces from the shuffled stream until the next one does not fit; that one opens the
  next batch. Nothing is dropped or repeated, epochs follow each other without a gap. Of several
  processes each packs the same batches: they are ids, and a run may go on with another number.
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

  def fill(self, packer: Packer, following: int) -> int:
    """Adds pieces from stream position `following` on; returns the position of the first that did
    not fit."""
    while True:
      piece = int(self.order[following])
      user, start, stop, first_target = (int(column[piece]) for column in self.pieces)
      items = self.dataset.sequence(user)[start:stop]
      if not packer.add(piece, items, first_target - start):
        if not len(packer):
          raise ValueError(f"a piece of {len(items)} items does not fit {self.layout}")
        return following
      following += 1

  def first_epoch(self) -> Iterator[Packer]:
    """Packs it, batch by batch; the last one may hold pieces of the second."""
    following = 0
    while following < len(self.pieces):
      packer = Packer(self.layout)
      following = self.fill(packer, following)
      yield packer

  def epoch(self) -> Epoch:
    """Packs the first epoch, to know what schedules are planned with and how full rows are."""
    batches, tokens = 0, 0
    for packer in self.first_epoch():
      batches, tokens = batches + 1, tokens + packer.tokens
    return Epoch(batches, tokens / max(batches * self.layout.rows * self.layout.row_length, 1))

  def users(self, batch: Batch) -> list[int]:
    """The user ids, as the data set writes them, that have a target in the batch."""
    pieces = np.unique(batch.piece_Q[batch.piece_Q >= 0])
    return sorted({int(u) for u in self.dataset.users[self.pieces.user[pieces]]})


class PackedBatchIterator(grain.DatasetIterator):
  def __init__(self, source: PackedBatches):
    super().__init__()
    self._source, self._following = source, 0

  def __next__(self) -> Batch:
    packer = Packer(self._source.layout)
    self._following = self._source.fill(packer, self._following)
    return packer.batch()

  def get_state(self) -> dict[str, int]:
    return {"following": self._following}

  def set_state(self, state: dict[str, int]) -> None:
    self._following = state["following"]


def item_batches(num_items: int, batch: int, *, seed: int) -> grain.IterDataset:
  """Endless int64 [batch] arrays of item ids 1..num_items, shuffled anew every epoch."""
  items = grain.MapDataset.range(1, num_items + 1).seed(seed).shuffle().repeat()
  return items.batch(batch).to_iter_dataset()


def batch_pieces(dataset: Dataset, pieces: Pieces, layout: Layout) -> Iterator[Batch]:
  """Every piece once, in order: evaluation batches. The last one is padded, nobody is dropped."""
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
  """Batches of the given sequences in order; piece_Q is the index of the sequence.

  Targets are all items of a sequence, or those from first_targets[i] on. Raises ValueError when one
  sequence alone is larger than a batch.
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
