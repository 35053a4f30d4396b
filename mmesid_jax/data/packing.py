"""Shared-prefix rows: many users and all of their targets in rows of one fixed shape.

Attention is causal, so a user's history is a trunk that all targets of the user share. A row
holds several users, each as a trunk of item tokens and, where the prompt ends in response tokens,
one short branch per target:

  item item item ... | response(t1) | response(t2) | ...

A target with index t (t items before it) is read at the last token of its branch, or, without
response tokens, at item token t - 1. A target with an empty history is then read at the end of the
prompt. Everything here is numpy and integers; `models.layers.attention` makes a mask of them.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users


class Batch(NamedTuple):
  """The input of a step: int32 ids for R rows of T tokens, Q targets and E distinct items."""

  item_E: np.ndarray  # the distinct items of the batch; slot 0 is padding (item 0)
  slot_RT: np.ndarray  # index into item_E of this token's item; 0 = not an item token
  segment_RT: np.ndarray  # which user of the row, from 1; 0 = padding
  position_RT: np.ndarray  # position after the prompt, as if the target were alone
  horizon_RT: np.ndarray  # how many trunk items of its own user the token sees
  branch_RT: np.ndarray  # which target's branch, from 1; 0 = trunk
  response_RT: np.ndarray  # which response token of the prompt, from 0
  target_Q: np.ndarray  # the item to predict; 0 where weight is 0
  read_Q: np.ndarray  # 0 = end of the prompt, else 1 + flat index into [R, T]
  weight_Q: np.ndarray  # float32, 1 = a target, 0 = unused
  piece_Q: np.ndarray  # row of the piece table that the target came from; -1 = unused


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static shape of a batch; a step is compiled once for each.

  response: number of response tokens after every target, 0 = none.
  items: maximum number of distinct items, 0 = as many as tokens.
  """

  rows: int
  row_length: int
  targets: int
  response: int = 0
  items: int = 0

  def tokens(self, items: int, targets: int) -> int:
    """Tokens of a piece with this number of items and targets; its last item is never an input."""
    return items - 1 + self.response * targets

  @property
  def item_places(self) -> int:
    """Maximum number of distinct items in a batch."""
    return self.items or self.rows * self.row_length

  @property
  def longest_training_piece(self) -> int:
    """Maximum number of items of a piece in which every item may be a target."""
    fits_row = (self.row_length + 1) // (1 + self.response)
    return min(fits_row, self.targets)

  @property
  def longest_history(self) -> int:
    """Maximum number of items that fit before a single target."""
    return self.row_length - self.response


class Pieces(NamedTuple):
  """Table of what is packed: every entry is a slice of one user's sequence. All int64 [E]."""

  user: np.ndarray  # row of the user in the dataset
  start: np.ndarray  # first item of the slice
  stop: np.ndarray  # one after its last item
  first_target: np.ndarray  # its targets are the items at first_target .. stop - 1

  def __len__(self) -> int:  # a NamedTuple would answer 4
    return self.user.shape[0]


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


def with_rows_for(layout: Layout, pieces: Pieces, multiple: int = 1) -> Layout:
  """Returns the layout with as many rows as its number of targets needs on average, plus 5%.

  So a batch of shuffled pieces runs out of targets before it runs out of tokens. The number of rows
  is a multiple of `multiple`.
  """
  targets = pieces.stop - pieces.first_target
  tokens = layout.tokens(pieces.stop - pieces.start, targets)
  tokens_per_target = tokens.sum() / max(targets.sum(), 1)
  rows = math.ceil(1.05 * tokens_per_target * layout.targets / layout.row_length)
  return dataclasses.replace(layout, rows=max(rows + -rows % multiple, multiple))


def with_capacity(layout: Layout, pieces: Pieces, multiple: int = 1) -> Layout:
  """Returns the layout with room for the items and targets that these pieces need, plus 25%.

  The need is that of an average batch, but the largest piece always fits. Every place costs a
  vector or all scores, used or not; where response tokens fill most of a row, a batch holds few
  items and targets. The number of targets is a multiple of `multiple` if that of `layout` is.
  """
  item_tokens = pieces.stop - pieces.start - 1
  targets = pieces.stop - pieces.first_target
  tokens = layout.tokens(pieces.stop - pieces.start, targets).sum()
  capacity = layout.rows * layout.row_length
  # The share of all pieces that one batch holds: it runs out of targets or of tokens first.
  share = min(layout.targets / max(targets.sum(), 1), capacity / max(tokens, 1))

  def places(amount_E: np.ndarray, limit: int) -> int:
    average = math.ceil(1.25 * share * amount_E.sum())
    return min(max(average, amount_E.max(initial=1)), limit)

  target_places = places(targets, layout.targets)
  return dataclasses.replace(
    layout,
    items=places(item_tokens, capacity),
    targets=target_places + -target_places % multiple,
  )


class _Placed(NamedTuple):
  """A piece and its place in the batch."""

  piece: int
  items: np.ndarray
  first_target: int  # its targets are items[first_target:]
  row: int
  start: int  # its first token in the row
  segment: int  # number of its user in the row, from 1
  first_branch: int  # number of its first branch in the row, from 1
  first_query: int  # place of its first target in [Q]


class Packer:
  """Fills one batch, first fit: a piece goes to the first row that has room for it."""

  def __init__(self, layout: Layout):
    self.layout = layout
    self._free_R = np.full(layout.rows, layout.row_length)  # tokens
    self._users_R = np.zeros(layout.rows, np.int32)
    self._branches_R = np.zeros(layout.rows, np.int32)
    self._placed: list[_Placed] = []
    self._targets = self._items = 0

  def add(self, piece: int, items: np.ndarray, first_target: int) -> bool:
    """Places a piece; its targets are items[first_target:]. Returns False when it does not fit."""
    targets = len(items) - first_target
    tokens = self.layout.tokens(len(items), targets)
    if self._targets + targets > self.layout.targets:
      return False
    if self._items + len(items) - 1 > self.layout.item_places:
      return False
    row = int(np.argmax(self._free_R >= tokens))
    if self._free_R[row] < tokens:
      return False
    start = self.layout.row_length - int(self._free_R[row])
    segment, first_branch = int(self._users_R[row]) + 1, int(self._branches_R[row]) + 1
    self._placed.append(
      _Placed(piece, items, first_target, row, start, segment, first_branch, self._targets)
    )
    self._free_R[row] -= tokens
    self._users_R[row] += 1
    self._branches_R[row] += targets
    self._targets += targets
    self._items += len(items) - 1
    return True

  def __len__(self) -> int:
    return len(self._placed)

  @property
  def tokens(self) -> int:
    """Tokens in use; the rest of the batch is padding."""
    return self._free_R.size * self.layout.row_length - int(self._free_R.sum())

  def batch(self) -> Batch:
    """Builds the batch of everything placed so far, padded to the layout's shape."""
    R, T, S = self.layout.rows, self.layout.row_length, self.layout.response
    item_RT, segment_RT, position_RT, horizon_RT, branch_RT, response_RT = np.zeros(
      (6, R, T), np.int32
    )
    target_Q, read_Q = np.zeros((2, self.layout.targets), np.int32)
    weight_Q = np.zeros(self.layout.targets, np.float32)
    piece_Q = np.full(self.layout.targets, -1, np.int32)

    for piece, items, first_target, row, start, segment, first_branch, first_query in self._placed:
      # The trunk: all items but the last, which is a target only.
      inputs = len(items) - 1
      trunk = slice(start, start + inputs)
      item_RT[row, trunk] = items[:-1]
      position_RT[row, trunk] = np.arange(inputs)
      horizon_RT[row, trunk] = np.arange(1, inputs + 1)

      # A branch of S response tokens per target; without response tokens nothing is written.
      histories = np.arange(first_target, len(items))  # number of items before each target
      targets = len(histories)
      branches = slice(trunk.stop, trunk.stop + targets * S)
      history_of_token, step = np.repeat(histories, S), np.tile(np.arange(S), targets)
      position_RT[row, branches] = history_of_token + step
      horizon_RT[row, branches] = history_of_token
      branch_RT[row, branches] = first_branch + np.repeat(np.arange(targets), S)
      response_RT[row, branches] = step
      segment_RT[row, start : branches.stop] = segment

      # A target is read at the last token of its branch, or at the item before it.
      if S:
        reads = 1 + row * T + branches.start + np.arange(S - 1, targets * S, S)
      else:
        reads = np.where(histories == 0, 0, 1 + row * T + start + histories - 1)
      queries = slice(first_query, first_query + targets)
      target_Q[queries] = items[first_target:]
      read_Q[queries], weight_Q[queries], piece_Q[queries] = reads, 1, piece

    unique, slot_RT = np.unique(item_RT, return_inverse=True)
    if unique[0] != 0:  # slot 0 is padding, even in a batch without padding
      unique, slot_RT = np.concatenate([[0], unique]), slot_RT + 1
    item_E = np.zeros(self.layout.item_places + 1, np.int32)
    item_E[: len(unique)] = unique
    return Batch(
      item_E,
      slot_RT.reshape(R, T).astype(np.int32),
      segment_RT,
      position_RT,
      horizon_RT,
      branch_RT,
      response_RT,
      target_Q,
      read_Q,
      weight_Q,
      piece_Q,
    )
