"""Reads times.npy: int64 seconds since 1970, one for each item of sequences.txt in its order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmesid_jax.data.folder.file_names import SEQUENCES
from mmesid_jax.data.folder.problems import Mistake, raise_first
from mmesid_jax.files.readers import read_npy


def open_times(path: Path) -> np.ndarray:
  """Opens the times as a memory map, int64 [interactions].

  Raises UserError for a file that is missing or not a .npy array, and for another type or shape.
  """
  times = read_npy(path)
  raise_first(path, _type_mistakes(times))
  return times


def read_times(path: Path, offsets: np.ndarray) -> np.ndarray:
  """Opens the times, int64 [interactions], and checks them against the users' sequences.

  offsets: int64 [U + 1]; user u's items are those from offsets[u] to offsets[u + 1]. Raises
  UserError as `open_times` does, and for the first of `times_mistakes`.
  """
  times = read_npy(path)
  raise_first(path, times_mistakes(times, offsets))
  return times


def _type_mistakes(times: np.ndarray) -> Iterator[Mistake]:
  if times.dtype != np.int64 or times.ndim != 1:
    text = f"{times.dtype} of shape {list(times.shape)}; expected int64 [interactions], seconds"
    yield Mistake("type", text)


def times_mistakes(times: np.ndarray, offsets: np.ndarray) -> Iterator[Mistake]:
  """Yields a wrong type, a wrong length, and every row that is earlier than the user's last."""
  wrong_type = list(_type_mistakes(times))
  if wrong_type:
    yield from wrong_type
    return
  interactions = offsets[-1].item()
  if len(times) != interactions:
    text = (
      f"{len(times):,} times; expected {interactions:,}, one for each item of {SEQUENCES} in its "
      "order"
    )
    yield Mistake("length", text)
    return
  earlier = np.flatnonzero(times[1:] < times[:-1]) + 1
  user = np.searchsorted(offsets, earlier, side="right") - 1
  within = earlier > offsets[user]  # a user's first item may have any time
  for row, line in zip(earlier[within].tolist(), (user[within] + 1).tolist(), strict=True):
    text = (
      f"is earlier than row {row - 1}, both of the user on {SEQUENCES}:{line}; expected a user's "
      "items oldest first"
    )
    yield Mistake("goes back", text, row=row)
