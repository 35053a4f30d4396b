"""How long histories are cut: pieces of users' sequences that fit a row."""

import dataclasses

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users
from mmesid_jax.data.row_layout import Layout, Pieces

CUTS_MATTER = 0.03  # share of the users from which on cuts are worth a line


@dataclasses.dataclass(frozen=True)
class PieceCounts:
  """Counts after cutting users' sequences into pieces."""

  users: int  # with at least one target
  pieces: int
  cut_users: int  # with a target whose history does not fit a row
  targets: int
  longest_history: int  # most items before a target that a row holds
  row_lengths: tuple[int, int]  # that cut next to nobody (less than CUTS_MATTER), and nobody


def training_pieces(
  dataset: Dataset,
  layout: Layout,
  *,
  min_history: int = 0,
  targets_per_user: int = 0,
  targets_per_piece: int = 0,
) -> tuple[Pieces, PieceCounts]:
  """Cuts the training sequences into pieces that fit a row; every target is in exactly one piece.

  A target sees its whole history wherever a row holds that history and the target's own branch. A
  user whose targets do not all fit one row has several pieces. A piece whose first target has a
  longer history starts as early as its targets leave room, and up to half a row before the first of
  them; positions restart there.

  Args:
    min_history: the minimum number of items before a target.
    targets_per_user: keep only this number of a user's last targets, with their whole histories
      (0 = all; the paper keeps 50).
    targets_per_piece: most targets per piece, each piece with the whole trunk before it (0 = all
      that fit, 1 = shuffled samples of one target). It changes which targets share a batch, and
      what is computed for a target only where its history does not fit a row.
  """
  rows, longest_U = [], []
  targets = 0
  for user, length in enumerate(dataset.train_lengths.tolist()):
    next_target = max(min_history, length - targets_per_user if targets_per_user else 0)
    if next_target >= length:
      continue
    targets += length - next_target
    longest_U.append(length - 1)
    while next_target < length:
      wanted = min(length - next_target, targets_per_piece or length, layout.targets)
      start = next_target - _history_read(layout, next_target, wanted)
      stop = next_target + min(wanted, layout.targets_after(next_target - start))
      rows.append((user, start, stop, next_target))
      next_target = stop
  pieces = Pieces(*np.asarray(rows, np.int64).reshape(-1, 4).T)
  return pieces, PieceCounts(
    users=len(longest_U),
    pieces=len(rows),
    cut_users=int((np.array(longest_U) > layout.longest_history).sum()),
    targets=targets,
    longest_history=layout.longest_history,
    row_lengths=_row_lengths(layout, longest_U),
  )


def _history_read(layout: Layout, history: int, targets: int) -> int:
  """Items before the first of a piece's targets, of the `history` that there are."""
  if history <= layout.longest_history:
    return history
  room = layout.row_length + 1 - targets * (1 + layout.branch)
  return min(max(room, (layout.row_length + 1) // 2), layout.longest_history)


def _row_lengths(layout: Layout, longest_U: list[int]) -> tuple[int, int]:
  """Row lengths, multiples of 32, for longest histories of these lengths."""
  if not longest_U:
    return layout.row_length, layout.row_length
  most = int(np.quantile(longest_U, 1 - CUTS_MATTER, method="higher"))
  needed = (history + layout.branch for history in (most, max(longest_U)))
  return tuple(max(layout.row_length, n + -n % 32) for n in needed)


def describe_cuts(counts: PieceCounts, key: str) -> str | None:
  """Says how many users lose part of their histories, and the value of `key`, the row length, that
  would do; None where too few do to matter."""
  if counts.cut_users <= CUTS_MATTER * counts.users:
    return None
  few, none = counts.row_lengths
  return (
    f"{counts.cut_users / counts.users:.0%} of the users have histories longer than the "
    f"{counts.longest_history:,} items that a row holds, and lose the oldest; {key}={few} would "
    f"cut less than {CUTS_MATTER:.0%} of them, {none} nobody; take fewer rows in proportion"
  )


def evaluation_pieces(dataset: Dataset, layout: Layout, split: str, most_users: int = 0) -> Pieces:
  """One piece per user with a target in `split` ("valid" or "test").

  A history that does not fit is cut to its newest items. most_users: as in `evaluated_users`.
  """
  users = evaluated_users(dataset, split, most_users)
  stop = dataset.split.targets[split][users] + 1
  start = np.maximum(0, stop - 1 - layout.longest_history)
  return Pieces(users, start, stop, stop - 1)
