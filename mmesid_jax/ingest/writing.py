"""A prepared dataset's files, from events: sequences.txt, users.jsonl, items.jsonl, times.npy."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES, USERS
from mmesid_jax.data.folder.writer import FIELDS, item_line, sequence_line, user_line
from mmesid_jax.files.atomic import open_atomic
from mmesid_jax.ingest.catalogue import Catalogue
from mmesid_jax.ingest.events import Events


def write(folder: Path, events: Events, catalogue: Catalogue) -> None:
  """Users 1..U and items 1..I are those of `events`, which stand as `Events.in_order` has them and
  whose numbers have no gaps. Raises UserError where the disk refuses it."""
  offsets = np.concatenate([[0], np.cumsum(np.bincount(events.user_E))])
  sequences = _sequences(events.item_E + 1, offsets)
  with open_atomic(folder / SEQUENCES) as file:
    file.writelines(sequences)
  if events.time_E is not None:
    with open_atomic(folder / TIMES) as file:
      np.save(file, events.time_E)
  users = (user_line(u, key) for u, key in enumerate(events.user_keys, start=1))
  with open_atomic(folder / USERS) as file:
    file.writelines(users)
  items = (
    item_line(i, key, {name: getattr(catalogue[key], name) for name in FIELDS})
    for i, key in enumerate(events.item_keys, start=1)
  )
  with open_atomic(folder / ITEMS) as file:
    file.writelines(items)


def _sequences(item_E: np.ndarray, offsets: np.ndarray) -> Iterator[bytes]:
  for user, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True), start=1):
    yield sequence_line(user, item_E[start:stop].tolist())
