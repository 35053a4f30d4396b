"""Filters events: duplicates and the k-core."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.ingest.events import Events


def first_of_duplicates(events: Events, kind: str) -> np.ndarray:
  """Returns a mask [E] of the events to keep.

  kind: "exact" keeps the first of events with the same user, item and time, and all events without
  times; "pair" keeps the earliest event of every user and item; "keep" keeps all.
  """
  if kind == "keep" or (kind == "exact" and events.time_E is None):
    return np.ones(len(events), bool)
  times = () if events.time_E is None else (events.nano_E, events.time_E)
  order = np.lexsort((*times, events.item_E, events.user_E))
  same = np.ones(max(len(events) - 1, 0), bool)
  for x_E in (events.user_E, events.item_E, *(times if kind == "exact" else ())):
    same &= x_E[order[1:]] == x_E[order[:-1]]
  keep_E = np.ones(len(events), bool)
  keep_E[order[1:][same]] = False
  return keep_E


def k_core(user_E: np.ndarray, item_E: np.ndarray, users: int, items: int) -> np.ndarray:
  """Returns a mask [E] of the k-core: every user has `users` events or more, every item `items`.

  It is the largest such part. Users and items with fewer events are removed until none is left.
  """
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
  """Yields (name, remaining events) after every step.

  A step is a name and a function that returns a mask [E] of the events to keep. Raises UserError
  when a step leaves no event.
  """
  for name, keep in steps:
    before = events.counts()
    events = events.select(keep(events))
    if not len(events):
      counts = ", ".join(f"{count:,} {what}" for what, count in before.items())
      raise UserError(f"no event is left after the step {name!r}; before it there were {counts}")
    yield name, events
