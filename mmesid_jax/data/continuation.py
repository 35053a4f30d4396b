"""Whether a data set continues an earlier one: the same items, and what users did since."""

import numpy as np

from mmesid_jax.data.dataset import Dataset


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
