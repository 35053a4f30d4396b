"""How long histories are cut: pieces of users' sequences that fit a row."""

import dataclasses

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users
from mmesid_jax.data.row_layout import Layout, Pieces


@dataclasses.dataclass(frozen=True)
class PieceCounts:
  """Counts after cutting users' sequences into pieces."""

  users: int  # with at least one target
  pieces: int
  cut_users: int  # with more items than one row holds
  targets: int


def training_pieces(
  dataset: Dataset,
  layout: Layout,
  *,
  min_history: int = 0,
  targets_per_user: int = 0,
  targets_per_piece: int = 0,
) -> tuple[Pieces, PieceCounts]:
  """Cuts the training sequences into pieces that fit a row; every target is in exactly one piece.

  A user with more items than a row holds is cut: a later piece starts up to half a row before its
  first target, positions restart there, and its targets see the items from there on.

  Args:
    min_history: the minimum number of items before a target.
    targets_per_user: keep only this number of a user's last targets, with their whole histories
      (0 = all; the paper keeps 50).
    targets_per_piece: targets per piece, each piece with the whole trunk before it (0 = all of a
      user's, 1 = shuffled samples of one target). It does not change what is computed for a
      target, only which targets share a batch.
  """
  rows, cut_users, targets, users = [], 0, 0, 0
  longest = layout.longest_training_piece
  step = targets_per_piece or longest
  for user, length in enumerate(dataset.train_lengths.tolist()):
    next_target = max(min_history, length - targets_per_user if targets_per_user else 0)
    targets += max(0, length - next_target)
    users += next_target < length
    cut_users += length > longest
    while next_target < length:
      start = max(0, min(next_target - longest // 2, length - longest))
      stop = min(length, start + longest)
      for first_target in range(next_target, stop, step):
        rows.append((user, start, min(stop, first_target + step), first_target))
      next_target = stop
  columns = np.asarray(rows, np.int64).reshape(-1, 4).T
  return Pieces(*columns), PieceCounts(users, len(rows), cut_users, targets)


def evaluation_pieces(dataset: Dataset, layout: Layout, split: str) -> Pieces:
  """One piece per user with a target in `split` ("valid" or "test").

  A history that does not fit is cut to its newest items.
  """
  users = evaluated_users(dataset, split)
  stop = dataset.split.targets[split][users] + 1
  start = np.maximum(0, stop - 1 - layout.longest_history)
  return Pieces(users, start, stop, stop - 1)
