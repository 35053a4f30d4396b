"""Filters events: duplicates, the k-core, and what else the settings ask for."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mmesid_jax.errors import UserError
from mmesid_jax.ingest.catalogue import Catalogue
from mmesid_jax.ingest.events import Events
from mmesid_jax.ingest.settings import split_names

ENOUGH = 0.5  # share of the events; a step that leaves fewer gets a line


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


def largest_core(events: Events, users: int, items: int, share: float) -> tuple[int, int, int]:
  """Returns the sizes of the largest core that keeps this share of the events, and their number.

  The sizes are at most `users` and `items`; from 1 on, which keeps all.
  """
  few, many, kept = 1, max(users, items), len(events)  # `few` keeps enough, `many` does not
  while many - few > 1:
    middle = (few + many) // 2
    sizes = (min(users, middle), min(items, middle))
    count = int(k_core(events.user_E, events.item_E, *sizes).sum())
    if count >= share * len(events):
      few, kept = middle, count
    else:
      many = middle
  return min(users, few), min(items, few), kept


class Step(NamedTuple):
  """A filter of events."""

  name: str
  keep: Callable[[Events], np.ndarray]  # returns a mask [E] of the events to keep
  remedy: Callable[[Events], str]  # says which setting keeps more of these events


def apply_filters(
  events: Events, steps: Sequence[Step]
) -> Iterator[tuple[str, Events, str | None]]:
  """Yields name, remaining events and advice after every step.

  The advice says what would keep more events, where the step left less than half of those before
  it, or is the one with which less than half of all are left. Raises UserError when a step leaves
  no event.
  """
  enough = ENOUGH * len(events)
  for step in steps:
    before = events
    events = before.select(step.keep(before))
    if not len(events):
      counts = ", ".join(f"{count:,} {what}" for what, count in before.counts().items())
      raise UserError(
        f"no event is left after the step {step.name!r}; before it there were {counts}; "
        f"{step.remedy(before)}"
      )
    advice = None
    if len(events) < ENOUGH * len(before) or len(events) < enough <= len(before):
      left = f"left {len(events):,} of {len(before):,} events"
      advice = f"The step {step.name!r} {left}; {step.remedy(before)}."
    yield step.name, events, advice


def filter_steps(config: ConfigDict, catalogue: Catalogue) -> list[Step]:
  """Returns the filters of the configuration in order."""
  steps = []
  if config.min_rating > 0:
    keep = functools.partial(_has_rating, minimum=config.min_rating)
    remedy = functools.partial(_rating_remedy, minimum=config.min_rating)
    steps.append(Step(f"ratings of at least {config.min_rating:g}", keep, remedy))
  for field in split_names(config.require):
    keep = functools.partial(_has_field, catalogue=catalogue, field=field)
    remedy = functools.partial(_field_remedy, catalogue=catalogue, field=field)
    steps.append(Step(f"items with {field}", keep, remedy))
  if config.duplicates != "keep":
    keep = functools.partial(first_of_duplicates, kind=config.duplicates)
    remedy = functools.partial(_duplicates_remedy, kind=config.duplicates)
    steps.append(Step(f"without duplicates ({config.duplicates})", keep, remedy))
  if max(config.core.user, config.core.item) > 1:
    sizes = {"users": config.core.user, "items": config.core.item}
    name = f"k-core: {config.core.user} events per user, {config.core.item} per item"
    keep = functools.partial(_in_core, **sizes)
    steps.append(Step(name, keep, functools.partial(_core_remedy, **sizes)))
  if config.min_length > max(config.core.user, 1):
    keep = functools.partial(_is_long, length=config.min_length)
    remedy = functools.partial(_length_remedy, length=config.min_length)
    steps.append(Step(f"users with at least {config.min_length} events", keep, remedy))
  return steps


def _has_rating(events: Events, minimum: float) -> np.ndarray:
  return events.rating_E >= minimum


def _rating_remedy(events: Events, minimum: float) -> str:
  missing = int(np.isnan(events.rating_E).sum())
  lower = int((events.rating_E < minimum).sum())
  return (
    f"{lower:,} ratings are below {minimum:g} and {missing:,} events have none; a lower "
    "--config.min_rating keeps more, 0 all"
  )


def _has_field(events: Events, catalogue: Catalogue, field: str) -> np.ndarray:
  return np.array([catalogue[key].has(field) for key in events.item_keys])[events.item_E]


def _field_remedy(events: Events, catalogue: Catalogue, field: str) -> str:
  keys = [events.item_keys[i] for i in np.unique(events.item_E).tolist()]
  described = sum(key in catalogue for key in keys)
  having = sum(catalogue[key].has(field) for key in keys)
  return (
    f"of {len(keys):,} items, {described:,} have a description and {having:,} a value of {field}; "
    f"--config.require without {field} keeps all"
  )


def _duplicates_remedy(events: Events, kind: str) -> str:
  if kind == "pair":
    exact = int(first_of_duplicates(events, "exact").sum())
    return f"--config.duplicates=exact keeps {exact:,}, =keep all"
  return "they have the user, item and time of an earlier one; --config.duplicates=keep keeps all"


def _in_core(events: Events, users: int, items: int) -> np.ndarray:
  return k_core(events.user_E, events.item_E, users, items)


def _core_remedy(events: Events, users: int, items: int) -> str:
  of_user, of_item, kept = largest_core(events, users, items, ENOUGH)
  return f"--config.core.user={of_user} --config.core.item={of_item} keeps {kept:,}"


def _is_long(events: Events, length: int) -> np.ndarray:
  return np.bincount(events.user_E)[events.user_E] >= length


def _length_remedy(events: Events, length: int) -> str:
  users = int((np.bincount(events.user_E)[np.unique(events.user_E)] < length).sum())
  return (
    f"{users:,} users have fewer; a lower --config.min_length keeps them, and with fewer than 3 "
    "they only train"
  )
