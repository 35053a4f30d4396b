"""The static shape of a batch, and the table of pieces that are packed into its rows."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static shape of a batch; a step is compiled once for each.

  response: number of response tokens after every target's history, 0 = none.
  codes: number of code tokens after those, 0 = none: they spell the target's semantic ID.
  items: maximum number of distinct items, 0 = as many as tokens.
  """

  rows: int
  row_length: int
  targets: int
  response: int = 0
  items: int = 0
  codes: int = 0

  @property
  def branch(self) -> int:
    """Number of tokens that only one target reads."""
    return self.response + self.codes

  def tokens(self, items: int, targets: int) -> int:
    """Tokens of a piece with this number of items and targets; its last item is never an input."""
    return items - 1 + self.branch * targets

  @property
  def item_places(self) -> int:
    """Maximum number of distinct items in a batch."""
    return self.items or self.rows * self.row_length

  def targets_after(self, history: int) -> int:
    """Number of consecutive targets that a row holds after a history of this number of items."""
    return (self.row_length + 1 - history) // (1 + self.branch)

  @property
  def longest_history(self) -> int:
    """Maximum number of items that fit before a single target."""
    return self.row_length - self.branch


class Pieces(NamedTuple):
  """Table of what is packed: every entry is a slice of one user's sequence. All int64 [E]."""

  user: np.ndarray  # row of the user in the dataset
  start: np.ndarray  # first item of the slice
  stop: np.ndarray  # one after its last item
  first_target: np.ndarray  # its targets are the items at first_target .. stop - 1

  def __len__(self) -> int:  # a NamedTuple would answer 4
    return self.user.shape[0]


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
