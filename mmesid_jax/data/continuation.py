"""Whether a data set continues an earlier one: the same items, and what users did since."""

from pathlib import Path

import numpy as np

from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.folder.keys import has_item_keys, kept_item_keys


def find_difference(new: Dataset, old: Dataset) -> str | None:
  """The first reason why `new` does not continue `old`, in words; None if it does.

  It continues it where the items are as many, the users of the old one come first, in the same
  order, and every history begins with the old one.
  """
  if new.num_items != old.num_items:
    return f"holds {new.num_items:,} items instead of {old.num_items:,}"
  if len(new) < len(old):
    return f"holds {len(new):,} users instead of at least {len(old):,}"
  if len(rows := np.flatnonzero(new.users[: len(old)] != old.users)):
    u = rows[0]
    return f"has user {new.users[u]} in row {u + 1} instead of user {old.users[u]}"
  if len(rows := np.flatnonzero(new.lengths[: len(old)] < old.lengths)):
    u = rows[0]
    return f"has {new.lengths[u]} items of user {old.users[u]} instead of at least {old.lengths[u]}"
  moved_E = np.repeat(new.offsets[: len(old)] - old.offsets[:-1], old.lengths)
  place_E = np.arange(len(old.items))
  if len(places := np.flatnonzero(new.items[place_E + moved_E] != old.items)):
    e = places[0]
    u = np.searchsorted(old.offsets, e, "right") - 1
    number, found = e - old.offsets[u] + 1, new.items[e + moved_E[e]]
    return f"has item {found} as number {number} of user {old.users[u]} instead of {old.items[e]}"
  return None


def find_other_item(new: Dataset, old: Dataset) -> str | None:
  """The first item with another key in `new` than in `old`, in words; None where all are the same,
  or one side has no keys. Both have as many items. Raises UserError for invalid keys."""
  new_keys, old_keys = _keys(new), _keys(old)
  if new_keys is None or old_keys is None:
    return None
  pairs = enumerate(zip(new_keys, old_keys, strict=True), 1)
  other = ((i, found, expected) for i, (found, expected) in pairs if found != expected)
  return next((f"has item {i} with the key {a!r} instead of {b!r}" for i, a, b in other), None)


def find_other_titles(new: Dataset, old: Dataset) -> str | None:
  """Why the items of `new` may be others than those of `old`, in words, where keys cannot tell;
  None for no doubt, and where nothing is known of items on either side. Raises UserError for an
  invalid items.jsonl."""
  known = [_has_keys(dataset) for dataset in (new, old)]
  if all(known):
    return None
  titles = [dataset.titles() for dataset in (new, old)]
  pairs = enumerate(zip(*titles, strict=True))
  both = [(i, found, expected) for i, (found, expected) in pairs if found and expected]
  if not both:
    doubt = "neither keys nor titles of both can be compared"
    return doubt if any(known) or any(map(any, titles)) else None
  other = [(i, found, expected) for i, found, expected in both if found != expected]
  if not other:
    return None
  i, found, expected = other[0]
  count = f"{len(other):,} of {len(both):,} items {'has' if len(other) == 1 else 'have'}"
  return f"{count} another title, the first is item {i}: {found!r} instead of {expected!r}"


def _keys(dataset: Dataset) -> list[str] | None:
  """The keys of the items, None where the data set has none."""
  return dataset.items_path and kept_item_keys(Path(dataset.items_path).parent)


def _has_keys(dataset: Dataset) -> bool:
  return dataset.items_path is not None and has_item_keys(Path(dataset.items_path).parent)
