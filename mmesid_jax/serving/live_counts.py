"""Transitions of new events, added to the counts of a blend that is served."""

import collections
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mmesid_jax.models.blend import BlendModel
from mmesid_jax.serving.ranker import Ranker

ROWS = 256  # items whose followers are changed in one step


class NewEvents(NamedTuple):
  """The history of a user, oldest first, and how many of its last items are new."""

  history: Sequence[int]
  new: int


def new_pairs(
  events: Iterable[NewEvents], window: int, decay: float
) -> dict[int, dict[int, float]]:
  """What the events add to the counts of `data.transitions`: item -> follower -> amount."""
  added: dict[int, dict[int, float]] = collections.defaultdict(
    lambda: collections.defaultdict(float)
  )
  for history, new in events:
    for place in range(len(history) - new, len(history)):
      for distance in range(1, min(window, place) + 1):
        added[history[place - distance]][history[place]] += distance**-decay
  return added


def add_transitions(ranker: Ranker, events: Iterable[NewEvents], window: int, decay: float) -> None:
  """Adds the transitions of new events to the counts of a blend; other models have none.

  An item that has all its places for followers in use takes a new one in the place of the weakest,
  if that is weaker. Shares, trends and weights stay as they are. The tables are changed in place:
  no call of the ranker may run meanwhile.
  """
  if not isinstance(ranker.model, BlendModel):
    return
  evidence, pairs = ranker.model.evidence, new_pairs(events, window, decay)
  items = sorted(pairs)
  for start in range(0, len(items), ROWS):
    row_E = np.zeros(ROWS, np.int32)  # row 0 is padding, and stays as it is
    some = items[start : start + ROWS]
    row_E[: len(some)] = some
    follower_EK, count_EK = (
      np.array(_take_rows(table[...], row_E)) for table in (evidence.follower_IK, evidence.count_IK)
    )
    for follower_K, count_K, item in zip(follower_EK, count_EK, some, strict=False):
      _add_to_row(follower_K, count_K, pairs[item])
    evidence.follower_IK.set_value(_put_rows(evidence.follower_IK[...], row_E, follower_EK))
    evidence.count_IK.set_value(_put_rows(evidence.count_IK[...], row_E, count_EK))
  if items:
    ranker.use_changed_tables()


def _add_to_row(follower_K: np.ndarray, count_K: np.ndarray, added: Mapping[int, float]) -> None:
  place_of = {item: place for place, item in enumerate(follower_K.tolist()) if count_K[place] > 0}
  for item, amount in added.items():
    if item not in place_of:
      place = int(count_K.argmin())
      if count_K[place] >= amount:
        continue
      place_of.pop(int(follower_K[place]), None)
      follower_K[place], count_K[place], place_of[item] = item, 0, place
    count_K[place_of[item]] += amount


@jax.jit
def _take_rows(table_IK: jax.Array, row_E: jax.Array) -> jax.Array:
  return table_IK[row_E]


@functools.partial(jax.jit, donate_argnums=0)
def _put_rows(table_IK: jax.Array, row_E: jax.Array, new_EK: jax.Array) -> jax.Array:
  return table_IK.at[row_E].set(new_EK)
