"""Shared-prefix rows: many users and all of their targets in rows of one fixed shape.

Attention is causal, so a user's history is a trunk that all targets of the user share. A row
holds several users, each as a trunk of item tokens and, where there are response or code tokens,
one short branch per target:

  item item item ... | response(t1) codes(t1) | response(t2) codes(t2) | ...

A target with index t (t items before it) is read at the last of its response tokens, or, without
any, at item token t - 1. A target with an empty history is then read at the end of the prompt.
Code tokens spell the target's semantic ID for a model that generates it: each is read for the code
that follows it. Everything here is numpy and integers; `models.packed_rows` makes a mask of them.
"""

from typing import NamedTuple

import numpy as np

from mmesid_jax.data.row_layout import Layout


class Batch(NamedTuple):
  """The input of a step: int32 ids for R rows of T tokens, Q targets and E distinct items."""

  item_E: np.ndarray  # the distinct items of the batch; slot 0 is padding (item 0)
  slot_RT: np.ndarray  # index into item_E of this token's item; 0 = not an item token
  segment_RT: np.ndarray  # which user of the row, from 1; 0 = padding
  position_RT: np.ndarray  # position after the prompt, as if the target were alone
  horizon_RT: np.ndarray  # how many trunk items of its own user the token sees
  branch_RT: np.ndarray  # which target's branch, from 1; 0 = trunk
  response_RT: np.ndarray  # which token of the branch, from 0: response tokens, then codes
  spelled_RT: np.ndarray  # the target that a code token belongs to; 0 = not a code token
  target_Q: np.ndarray  # the item to predict; 0 where weight is 0
  read_Q: np.ndarray  # 0 = end of the prompt, else 1 + flat index into [R, T]
  code_read_Q: np.ndarray  # 1 + flat index of the target's first code token; 0 = it has none
  weight_Q: np.ndarray  # float32, 1 = a target, 0 = unused
  piece_Q: np.ndarray  # row of the piece table that the target came from; -1 = unused
  history_QX: np.ndarray  # all items before the target, newest first; [Q, 0] until `with_histories`


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
    X = self.layout.branch
    item_RT, segment_RT, position_RT, horizon_RT, branch_RT, response_RT, spelled_RT = np.zeros(
      (7, R, T), np.int32
    )
    target_Q, read_Q, code_read_Q = np.zeros((3, self.layout.targets), np.int32)
    weight_Q = np.zeros(self.layout.targets, np.float32)
    piece_Q = np.full(self.layout.targets, -1, np.int32)

    for piece, items, first_target, row, start, segment, first_branch, first_query in self._placed:
      # The trunk: all items but the last, which is a target only.
      inputs = len(items) - 1
      trunk = slice(start, start + inputs)
      item_RT[row, trunk] = items[:-1]
      position_RT[row, trunk] = np.arange(inputs)
      horizon_RT[row, trunk] = np.arange(1, inputs + 1)

      # A branch of X tokens per target, of which the first S are response tokens; X may be 0.
      histories = np.arange(first_target, len(items))  # number of items before each target
      targets = len(histories)
      branches = slice(trunk.stop, trunk.stop + targets * X)
      history_of_token, place = np.repeat(histories, X), np.tile(np.arange(X), targets)
      position_RT[row, branches] = history_of_token + place
      horizon_RT[row, branches] = history_of_token
      branch_RT[row, branches] = first_branch + np.repeat(np.arange(targets), X)
      response_RT[row, branches] = place
      spelled_RT[row, branches] = np.where(place < S, 0, items[history_of_token])
      segment_RT[row, start : branches.stop] = segment

      # A target is read at its last response token, or at the item before it.
      first_token = 1 + row * T + branches.start + X * np.arange(targets)
      if S:
        reads = first_token + S - 1
      else:
        reads = np.where(histories == 0, 0, 1 + row * T + start + histories - 1)
      queries = slice(first_query, first_query + targets)
      target_Q[queries] = items[first_target:]
      read_Q[queries], weight_Q[queries], piece_Q[queries] = reads, 1, piece
      if self.layout.codes:
        code_read_Q[queries] = first_token + S

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
      spelled_RT,
      target_Q,
      read_Q,
      code_read_Q,
      weight_Q,
      piece_Q,
      np.zeros((self.layout.targets, 0), np.int32),
    )
