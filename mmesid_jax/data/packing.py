"""Shared-prefix rows: many users and all of their targets in rows of one fixed shape.

Attention is causal, so a user's history is a trunk that all of that user's targets share. A row
holds several users, each as a trunk of item tokens and, where the prompt ends in response tokens,
one short branch for every target:

  item item item ... | response(t1) | response(t2) | ...

A target with index t (t items before it) is read at the last token of its branch, or, without
response tokens, at item token t - 1. A target with an empty history is then read at the end of the
prompt. Everything here is numpy and integers; `models.layers.attention` turns the integers into a
mask.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users


class Batch(NamedTuple):
  """What a step reads: int32 ids only. R rows, T tokens, Q targets, N unique items."""

  item_N: np.ndarray  # the distinct items of the batch; slot 0 is padding (item 0)
  slot_RT: np.ndarray  # which of item_N stands at this token; 0 = not an item token
  segment_RT: np.ndarray  # which user of the row, from 1; 0 = padding
  position_RT: np.ndarray  # position behind the prompt, as if the target were alone
  horizon_RT: np.ndarray  # how many trunk items of its own user the token sees
  branch_RT: np.ndarray  # which target's branch, from 1; 0 = trunk
  response_RT: np.ndarray  # which response token of the prompt, from 0
  target_Q: np.ndarray  # the item to be predicted; 0 where weight is 0
  read_Q: np.ndarray  # 0 = end of the prompt, else 1 + flat index into [R, T]
  weight_Q: np.ndarray  # float32, 1 = a target, 0 = unused place
  piece_Q: np.ndarray  # row of the piece table that the target came from; -1 = unused


@dataclasses.dataclass(frozen=True)
class Layout:
  """The fixed shape of a batch. response = number of response tokens behind every target, 0 =
  none. items = places for distinct items, 0 = as many as tokens."""

  rows: int
  row_length: int
  targets: int
  response: int = 0
  items: int = 0

  def tokens(self, items: int, targets: int) -> int:
    """Tokens that a piece of so many items and targets takes: its last item is never an input."""
    return items - 1 + self.response * targets

  @property
  def item_places(self) -> int:
    """Most distinct items of a batch."""
    return self.items or self.rows * self.row_length

  @property
  def longest_training_piece(self) -> int:
    """Most items a piece may have when every one of them may be a target."""
    fits_row = (self.row_length + 1) // (1 + self.response)
    return min(fits_row, self.targets)

  @property
  def longest_history(self) -> int:
    """Most items that fit before a single target."""
    return self.row_length - self.response


class Pieces(NamedTuple):
  """Table of what is packed: one line is a stretch of one user's sequence. All int64 [N]."""

  user: np.ndarray  # row of the user in the dataset
  start: np.ndarray  # first item of the stretch
  stop: np.ndarray  # one behind its last item
  first_target: np.ndarray  # its targets are the items at first_target .. stop - 1

  def __len__(self) -> int:  # a NamedTuple would answer 4
    return self.user.shape[0]


@dataclasses.dataclass(frozen=True)
class PieceCounts:
  """What cutting did: users, pieces, users that were cut, targets."""

  users: int
  pieces: int
  cut_users: int
  targets: int


def training_pieces(
  dataset: Dataset,
  layout: Layout,
  *,
  min_history: int = 0,
  targets_per_user: int = 0,
  targets_per_piece: int = 0,
) -> tuple[Pieces, PieceCounts]:
  """Every training target once, cut into pieces that fit a row.

  A user with more items than a row holds is cut: a later piece starts up to half a row before its
  first target, positions restart there, and its targets see the items from there on.
  targets_per_user keeps only the last so many targets of a user (0 = all; the paper keeps 50),
  histories stay whole. targets_per_piece breaks a piece into several of so many targets, each with
  the whole trunk before it (0 = never): what is computed for a target stays the same, but which
  targets share a batch does not; 1 = the usual shuffled samples of one target.
  """
  table, cut_users, targets, users = [], 0, 0, 0
  longest = layout.longest_training_piece
  for user, length in enumerate(dataset.train_lengths.tolist()):
    position = max(min_history, length - targets_per_user if targets_per_user else 0)
    targets += max(0, length - position)
    users += position < length
    cut_users += length > longest
    while position < length:
      start = max(0, min(position - longest // 2, length - longest))
      stop = min(length, start + longest)
      for first in range(position, stop, targets_per_piece or longest):
        table.append((user, start, min(stop, first + (targets_per_piece or longest)), first))
      position = stop
  columns = np.asarray(table, np.int64).reshape(-1, 4).T
  return Pieces(*columns), PieceCounts(users, len(table), cut_users, targets)


def evaluation_pieces(dataset: Dataset, layout: Layout, split: str) -> Pieces:
  """One piece a user that has a target in `split` ("valid" or "test"), its history cut to the
  newest items."""
  users = evaluated_users(dataset, split)
  stop = dataset.split.targets[split][users] + 1
  start = np.maximum(0, stop - 1 - layout.longest_history)
  return Pieces(users, start, stop, stop - 1)


def with_rows_for(layout: Layout, pieces: Pieces, multiple: int = 1) -> Layout:
  """The layout with the rows that its number of targets takes on average, and a twentieth more: a
  batch of shuffled pieces is full of targets before it is full of tokens. Rows divide by
  `multiple`."""
  targets = pieces.stop - pieces.first_target
  tokens = layout.tokens(pieces.stop - pieces.start, targets)
  a_target = tokens.sum() / max(targets.sum(), 1)
  rows = math.ceil(1.05 * a_target * layout.targets / layout.row_length)
  return dataclasses.replace(layout, rows=max(rows + -rows % multiple, multiple))


def with_capacity(layout: Layout, pieces: Pieces, multiple: int = 1) -> Layout:
  """The layout with the places for items and for targets that these pieces take on average, and a
  quarter more, but never so few that one does not fit: every place costs a vector or all scores,
  used or not, and where response tokens are most of a row, both are few. Targets divide by
  `multiple`, if the layout's do."""
  item_tokens = pieces.stop - pieces.start - 1
  targets = pieces.stop - pieces.first_target
  tokens = layout.tokens(pieces.stop - pieces.start, targets).sum()
  places = layout.rows * layout.row_length
  # What fills a batch first, its targets or its tokens.
  full = min(layout.targets / max(targets.sum(), 1), places / max(tokens, 1))

  def enough(amount, most: int) -> int:
    return min(max(math.ceil(1.25 * full * amount.sum()), amount.max(initial=1)), most)

  most = enough(targets, layout.targets)
  return dataclasses.replace(
    layout, items=enough(item_tokens, places), targets=most + -most % multiple
  )


class Packer:
  """Fills one batch, first fit: a piece goes to the first row that has room for it."""

  def __init__(self, layout: Layout):
    self.layout = layout
    self._free_R = np.full(layout.rows, layout.row_length)
    self._users_R = np.zeros(layout.rows, np.int32)
    self._placed: list[tuple[int, int, np.ndarray, int]] = []  # piece, row, items, first target
    self._targets = self._items = 0

  def add(self, piece: int, items: np.ndarray, first_target: int) -> bool:
    """Places a piece's items; the targets are items[first_target:]. False when it does not fit."""
    targets = len(items) - first_target
    need = self.layout.tokens(len(items), targets)
    if self._targets + targets > self.layout.targets:
      return False
    if self._items + len(items) - 1 > self.layout.item_places:
      return False
    row = int(np.argmax(self._free_R >= need))
    if self._free_R[row] < need:
      return False
    self._free_R[row] -= need
    self._targets += targets
    self._items += len(items) - 1
    self._placed.append((piece, row, items, first_target))
    return True

  def __len__(self) -> int:
    return len(self._placed)

  @property
  def tokens(self) -> int:
    """Tokens in use; the rest of the batch is padding."""
    return self._free_R.size * self.layout.row_length - int(self._free_R.sum())

  def batch(self) -> Batch:
    """The batch of everything placed so far, padded to the layout's shape."""
    R, T, Q, S = (
      self.layout.rows,
      self.layout.row_length,
      self.layout.targets,
      self.layout.response,
    )
    item, segment, position, horizon, branch, response = np.zeros((6, R, T), np.int32)
    target_Q, read_Q = np.zeros((2, Q), np.int32)
    weight_Q, piece_Q = np.zeros(Q, np.float32), np.full(Q, -1, np.int32)
    at_R, users_R, branches_R = np.zeros((3, R), np.int64)
    q = 0
    for piece, row, items, first in self._placed:
      n, begin = len(items), at_R[row]
      users_R[row] += 1
      trunk = slice(begin, begin + n - 1)
      item[row, trunk] = items[:-1]
      position[row, trunk] = np.arange(n - 1)
      horizon[row, trunk] = np.arange(1, n)
      t_K = np.arange(first, n)  # the piece's K targets
      places = slice(q, q + len(t_K))
      if S:
        tail = slice(begin + n - 1, begin + n - 1 + S * len(t_K))
        s = np.tile(np.arange(S), len(t_K))
        position[row, tail] = np.repeat(t_K, S) + s
        horizon[row, tail] = np.repeat(t_K, S)
        branch[row, tail] = branches_R[row] + 1 + np.repeat(np.arange(len(t_K)), S)
        response[row, tail] = s
        branches_R[row] += len(t_K)
        read_Q[places] = 1 + row * T + tail.start + S * np.arange(1, len(t_K) + 1) - 1
        at_R[row] = tail.stop
      else:
        read_Q[places] = np.where(t_K == 0, 0, 1 + row * T + begin + t_K - 1)
        at_R[row] = trunk.stop
      segment[row, begin : at_R[row]] = users_R[row]
      target_Q[places], weight_Q[places], piece_Q[places] = items[first:], 1, piece
      q += len(t_K)
    unique, slot = np.unique(item, return_inverse=True)
    if unique[0] != 0:  # slot 0 is padding even where no token is
      unique, slot = np.concatenate([[0], unique]), slot + 1
    item_N = np.zeros(self.layout.item_places + 1, np.int32)
    item_N[: len(unique)] = unique
    return Batch(
      item_N,
      slot.reshape(R, T).astype(np.int32),
      segment,
      position,
      horizon,
      branch,
      response,
      target_Q,
      read_Q,
      weight_Q,
      piece_Q,
    )
