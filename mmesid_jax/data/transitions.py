"""How often each item follows each other item in the training parts, and how closely.

count[a, b] = sum over distances d = 1 .. window of d^-decay * (times that b comes d items after a).
Only the strongest followers of an item are kept. Source: counts as evidence for the next item are
the sequential analogue of item-based nearest neighbors (Deshpande and Karypis 2004).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse

PAIRS = 2**23  # pairs of events that are summed at a time: about 0.3 GiB


class Transitions(NamedTuple):
  """The strongest followers of every item, strongest first; unused places hold item 0, count 0."""

  follower_IK: np.ndarray  # int32
  count_IK: np.ndarray  # float32
  kept: float  # share of the sum of all counts that is kept


def count_transitions(
  item_E: np.ndarray,
  user_E: np.ndarray,
  num_items: int,
  *,
  window: int,
  decay: float,
  followers: int,
  counted_E: np.ndarray | None = None,
) -> Transitions:
  """Counts the pairs of events of one user that are at most `window` items apart.

  Works through the items in blocks, so memory is bounded by the table and by PAIRS.

  Args:
    item_E: int, items of all events from 1, users one after another, oldest first.
    user_E: int, user of every event.
    num_items: the largest item id.
    decay: exponent of the distance; 0 = all distances count alike.
    followers: number of followers to keep of each item.
    counted_E: bool, events that count as followers; None = all. With the new events of users, the
      result is what they add to a table.
  """
  weight_W = np.arange(1, window + 1, dtype=np.float64) ** -decay
  order_E = np.argsort(item_E, kind="stable")
  first_I = np.searchsorted(
    item_E[order_E], np.arange(num_items + 2)
  )  # events of item i: first[i]:
  follower_IK = np.zeros((num_items + 1, followers), np.int32)
  count_IK = np.zeros((num_items + 1, followers), np.float32)
  total = 0.0
  identity = scipy.sparse.identity(num_items + 1, np.float32, format="csr")
  for start, stop in _blocks(first_I, window):
    event_E = order_E[first_I[start] : first_I[stop]]
    next_EW = event_E[:, None] + np.arange(1, window + 1)
    inside_EW = next_EW < len(item_E)
    next_EW = np.where(inside_EW, next_EW, 0)
    inside_EW &= user_E[next_EW] == user_E[event_E][:, None]
    if counted_E is not None:
      inside_EW &= counted_E[next_EW]
    pairs_before_E = np.concatenate([[0], np.cumsum(inside_EW.sum(1))])
    first_pair_I = pairs_before_E[first_I[start : stop + 1] - first_I[start]]
    weight_EW = np.broadcast_to(weight_W.astype(np.float32), inside_EW.shape)
    pairs = scipy.sparse.csr_matrix(
      (weight_EW[inside_EW], item_E[next_EW[inside_EW]], first_pair_I),
      shape=(stop - start, num_items + 1),
    )
    counts = pairs @ identity  # a product adds equal pairs up in linear time, without sorting
    total += float(counts.data.sum(dtype=np.float64))
    _keep_strongest(counts, follower_IK[start:stop], count_IK[start:stop])
  kept = float(count_IK.sum(dtype=np.float64)) / total if total else 1.0
  return Transitions(follower_IK, count_IK, kept)


def _blocks(first_I: np.ndarray, window: int) -> Iterator[tuple[int, int]]:
  """Ranges of items, from 1, whose events have at most PAIRS followers together, or one item."""
  start, last = 1, len(first_I) - 1
  while start < last:
    room = first_I[start] + max(PAIRS // window, 1)
    stop = max(int(np.searchsorted(first_I, room, "right")) - 1, start + 1)
    stop = min(stop, last)
    yield start, stop
    start = stop


def _keep_strongest(counts, follower_EK: np.ndarray, count_EK: np.ndarray) -> None:
  """Fills rows with the largest counts of a CSR matrix, largest first, ties by the lower item."""
  row_E = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
  order_E = np.lexsort((counts.indices, -counts.data, row_E))
  place_E = np.arange(len(row_E)) - np.repeat(counts.indptr[:-1], np.diff(counts.indptr))
  kept_E = place_E < follower_EK.shape[1]
  order_E, row_E, place_E = order_E[kept_E], row_E[kept_E], place_E[kept_E]
  follower_EK[row_E, place_E] = counts.indices[order_E]
  count_EK[row_E, place_E] = counts.data[order_E]
