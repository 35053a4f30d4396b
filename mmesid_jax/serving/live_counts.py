"""Transitions of new events, added to the counts of a blend that is served."""

import collections
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mmesid_jax.serving.ranker import Ranker

ROWS = 256  # items whose followers are changed in one step
MOST_OUTSIDE = 2**20  # pairs that are remembered and have no place in the tables


class NewEvents(NamedTuple):
  """The end of a user's history, oldest first, and how many of its last items are new."""

  history: Sequence[int]
  new: int


def new_pairs(
  events: Iterable[NewEvents], window: int, decay: float
) -> dict[int, dict[int, float]]:
  """Amounts that events add to the counts of `data.transitions`: item -> follower -> amount."""
  added: dict[int, dict[int, float]] = collections.defaultdict(
    lambda: collections.defaultdict(float)
  )
  for history, new in events:
    for place in range(len(history) - new, len(history)):
      for distance in range(1, min(window, place) + 1):
        added[history[place - distance]][history[place]] += distance**-decay
  return added


class LiveCounts:
  """The counts of a blend's ranker, which new events change; no call of the ranker may run
  meanwhile.

  An item keeps its strongest followers in the tables. The amounts of up to MOST_OUTSIDE others are
  kept beside them, so a follower comes in once it is stronger than the weakest, however its events
  arrive. Shares, trends and weights stay as they are.

  Args:
    ranker: of a blend.
    window, decay: as in `count_transitions`.
  """

  def __init__(self, ranker: Ranker, window: int, decay: float):
    self.window = window
    self._ranker, self._decay = ranker, decay
    self._outside: dict[tuple[int, int], float] = {}

  def add(self, events: Iterable[NewEvents]) -> None:
    """Adds the transitions of new events."""
    pairs = new_pairs(events, self.window, self._decay)
    items = sorted(pairs)
    if len(self._outside) > MOST_OUTSIDE:
      self._outside.clear()
    for start in range(0, len(items), ROWS):
      self._change_rows(items[start : start + ROWS], pairs)
    self._ranker.use_changed_tables()

  def warm(self) -> None:
    """Compiles what `add` needs, by changing nothing."""
    self._change_rows([], {})
    self._ranker.use_changed_tables()

  def _change_rows(self, items: Sequence[int], pairs: Mapping[int, Mapping[int, float]]) -> None:
    evidence = self._ranker.model.evidence
    row_E = np.zeros(ROWS, np.int32)  # row 0 is padding, and stays as it is
    row_E[: len(items)] = items
    tables = evidence.follower_IK[...], evidence.count_IK[...]
    follower_EK, count_EK = map(np.array, _take_rows(tables, row_E))
    for follower_K, count_K, item in zip(follower_EK, count_EK, items, strict=False):
      _add_to_row(item, follower_K, count_K, pairs[item], self._outside)
    follower_IK, count_IK = _put_rows(tables, row_E, (follower_EK, count_EK))
    evidence.follower_IK.set_value(follower_IK)
    evidence.count_IK.set_value(count_IK)


def _add_to_row(
  item: int,
  follower_K: np.ndarray,
  count_K: np.ndarray,
  added: Mapping[int, float],
  outside: MutableMapping[tuple[int, int], float],
) -> None:
  place_of = {f: place for place, f in enumerate(follower_K.tolist()) if count_K[place] > 0}
  for follower, amount in added.items():
    if follower in place_of:
      count_K[place_of[follower]] += amount
      continue
    amount += outside.pop((item, follower), 0.0)
    place = int(count_K.argmin())
    weakest, count = int(follower_K[place]), float(count_K[place])
    if count >= amount:
      outside[item, follower] = amount
      continue
    if count > 0:
      outside[item, weakest] = count
      del place_of[weakest]
    follower_K[place], count_K[place], place_of[follower] = follower, amount, place


@jax.jit
def _take_rows(tables, row_E):
  return jax.tree.map(lambda table_IK: table_IK[row_E], tables)


@jax.jit  # the old tables are not donated: they may be memory of numpy, which is not XLA's to write
def _put_rows(tables, row_E, rows):
  return jax.tree.map(lambda table_IK, new_EK: table_IK.at[row_E].set(new_EK), tables, rows)
