"""Which events stay: first of duplicates, ratings, known items, k-core, length."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.ingest.events import Events

DUPLICATES = ("keep", "exact", "pair")


def first_of_duplicates(events: Events, kind: str) -> np.ndarray:
  """Mask [N] of events that no earlier one is equal to: "exact" in user, item and time, which
  without times none is; "pair" in user and item, of which the one with the earliest time stays;
  "keep" keeps all."""
  if kind == "keep" or (kind == "exact" and events.time_N is None):
    return np.ones(len(events), bool)
  time_N = np.zeros(len(events), np.int64) if events.time_N is None else events.time_N
  order = np.lexsort((time_N, events.item_N, events.user_N))
  same = np.ones(max(len(events) - 1, 0), bool)
  columns = (events.user_N, events.item_N, *([time_N] if kind == "exact" else []))
  for x_N in columns:
    same &= x_N[order[1:]] == x_N[order[:-1]]
  keep_N = np.ones(len(events), bool)
  keep_N[order[1:][same]] = False
  return keep_N


def k_core(user_N: np.ndarray, item_N: np.ndarray, users: int, items: int) -> np.ndarray:
  """Mask [N] of the largest part in which every user has at least `users` events and every item at
  least `items`, found by leaving out, until nothing changes, those that have fewer."""
  kept = np.arange(len(user_N))
  while True:
    u, i = user_N[kept], item_N[kept]
    enough = (np.bincount(u)[u] >= users) & (np.bincount(i)[i] >= items)
    if enough.all():
      break
    kept = kept[enough]
  mask_N = np.zeros(len(user_N), bool)
  mask_N[kept] = True
  return mask_N


def apply_filters(
  events: Events, steps: Sequence[tuple[str, Callable[[Events], np.ndarray]]]
) -> Iterator[tuple[str, Events]]:
  """The events after every step, by its name. A step says which to keep, mask [N]. Raises UserError
  for a step behind which none is left."""
  for name, keep in steps:
    before = events.counts()
    events = events.only(keep(events))
    if not len(events):
      told = ", ".join(f"{count:,} {what}" for what, count in before.items())
      raise UserError(f"no event is left after the step {name!r}; before it there were {told}")
    yield name, events
