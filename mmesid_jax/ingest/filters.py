"""Which events stay: first of duplicates, ratings, known items, k-core, length."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.ingest.events import Events

DUPLICATES = ("keep", "exact", "pair")


def first_of_duplicates(events: Events, kind: str) -> np.ndarray:
  """Mask [E] of events that no earlier one is equal to: "exact" in user, item and time, which
  without times none is; "pair" in user and item, of which the one with the earliest time stays;
  "keep" keeps all."""
  if kind == "keep" or (kind == "exact" and events.time_E is None):
    return np.ones(len(events), bool)
  time_E = np.zeros(len(events), np.int64) if events.time_E is None else events.time_E
  order = np.lexsort((time_E, events.item_E, events.user_E))
  same = np.ones(max(len(events) - 1, 0), bool)
  columns = (events.user_E, events.item_E, *([time_E] if kind == "exact" else []))
  for x_E in columns:
    same &= x_E[order[1:]] == x_E[order[:-1]]
  keep_E = np.ones(len(events), bool)
  keep_E[order[1:][same]] = False
  return keep_E


def k_core(user_E: np.ndarray, item_E: np.ndarray, users: int, items: int) -> np.ndarray:
  """Mask [E] of the largest part in which every user has at least `users` events and every item at
  least `items`, found by leaving out, until nothing changes, those that have fewer."""
  kept = np.arange(len(user_E))
  while True:
    u, i = user_E[kept], item_E[kept]
    enough = (np.bincount(u)[u] >= users) & (np.bincount(i)[i] >= items)
    if enough.all():
      break
    kept = kept[enough]
  mask_E = np.zeros(len(user_E), bool)
  mask_E[kept] = True
  return mask_E


def apply_filters(
  events: Events, steps: Sequence[tuple[str, Callable[[Events], np.ndarray]]]
) -> Iterator[tuple[str, Events]]:
  """The events after every step, by its name. A step says which to keep, mask [E]. Raises UserError
  for a step behind which none is left."""
  for name, keep in steps:
    before = events.counts()
    events = events.only(keep(events))
    if not len(events):
      told = ", ".join(f"{count:,} {what}" for what, count in before.items())
      raise UserError(f"no event is left after the step {name!r}; before it there were {told}")
    yield name, events
