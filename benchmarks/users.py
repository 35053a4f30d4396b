"""Whom the benchmarks measure with: the users of a data set's folder, or invented ones."""

import pathlib

import numpy as np

from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.folder.file_names import SEQUENCES
from mmesid_jax.data.folder.sequences import read_sequences

USERS, ITEMS = 22_332, 12_086  # of Beauty


def read(data: str | None, *, users: int = USERS, items: int = ITEMS) -> Dataset:
  """Of the folder `data`; without one so many users, their histories as long as in Beauty (at least
  5, 8.9 on average, geometric), items by a power of their rank."""
  if data:
    sequences = read_sequences(pathlib.Path(data) / SEQUENCES)
    numbers, read_items, offsets = sequences
    return Dataset(read_items, offsets, numbers, int(read_items.max()), "", None)
  rng = np.random.default_rng(0)
  offsets = np.cumsum([0, *(4 + rng.geometric(1 / 4.88, users))])
  weight = 1 / np.arange(1, items + 1) ** 0.7
  drawn = 1 + rng.choice(items, offsets[-1], p=weight / weight.sum())
  return Dataset(drawn.astype(np.int32), offsets, np.arange(1, users + 1), items, "invented", None)
