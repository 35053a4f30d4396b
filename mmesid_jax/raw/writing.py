"""A prepared dataset's files, from events: sequences.txt, users.jsonl, items.jsonl, times.npy."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmesid_jax.data.files import ITEMS, SEQUENCES, TIMES, USERS, write_whole
from mmesid_jax.data.lines import FIELDS, item_line, sequence_line, user_line
from mmesid_jax.raw.events import Events
from mmesid_jax.raw.items import Catalogue


def by_user(events: Events) -> tuple[np.ndarray, np.ndarray]:
  """Order [N] of the events by user, then time, then place in the source; and offsets [U + 1] of
  the users in it."""
  columns = (events.user_N,) if events.time_N is None else (events.time_N, events.user_N)
  order_N = np.lexsort(columns)  # stable
  lengths_U = np.bincount(events.user_N, minlength=len(events.user_keys))
  return order_N, np.concatenate([[0], np.cumsum(lengths_U)])


def write(folder: Path, events: Events, catalogue: Catalogue) -> None:
  """Users 1..U and items 1..I are those of `events`, whose numbers have no gaps. Raises UserError
  where the disk refuses it."""
  order_N, offsets = by_user(events)
  item_N = events.item_N[order_N] + 1
  write_whole(folder / SEQUENCES, lambda file: file.writelines(_sequences(item_N, offsets)))
  if events.time_N is not None:
    time_N = events.time_N[order_N]
    write_whole(folder / TIMES, lambda file: np.save(file, time_N))
  users = (user_line(u, key) for u, key in enumerate(events.user_keys, start=1))
  write_whole(folder / USERS, lambda file: file.writelines(users))
  items = (
    item_line(i, key, {name: getattr(catalogue[key], name) for name in FIELDS})
    for i, key in enumerate(events.item_keys, start=1)
  )
  write_whole(folder / ITEMS, lambda file: file.writelines(items))


def _sequences(item_N: np.ndarray, offsets: np.ndarray) -> Iterator[bytes]:
  for user, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True), start=1):
    yield sequence_line(user, item_N[start:stop].tolist())
