"""When the interactions were: times.npy, int64 seconds since 1970, one for every item of
sequences.txt in its order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmesid_jax.data.folder.problems import Mistake, raise_first
from mmesid_jax.files.atomic import SEQUENCES, read_npy


def read_times(path: Path, offsets: np.ndarray) -> np.ndarray:
  """int64 [interactions], memory-mapped, of users whose items are at offsets [U + 1]. Raises
  UserError for a file that is missing or no table, and for the first mistake."""
  times = read_npy(path)
  raise_first(path, times_mistakes(times, offsets))
  return times


def times_mistakes(times: np.ndarray, offsets: np.ndarray) -> Iterator[Mistake]:
  """Another type, another length, and every row that goes back within a user."""
  if times.dtype != np.int64 or times.ndim != 1:
    text = f"{times.dtype} of shape {list(times.shape)}; expected int64 [interactions], seconds"
    yield Mistake("type", text)
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
  within = earlier > offsets[user]  # the first of a user may be as early as it likes
  for row, line in zip(earlier[within].tolist(), (user[within] + 1).tolist(), strict=True):
    text = (
      f"is earlier than row {row - 1}, both of the user on {SEQUENCES}:{line}; expected a user's "
      "items oldest first"
    )
    yield Mistake("goes back", text, row=row)
