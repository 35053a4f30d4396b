"""One sample per target out of our own parts: what shared-prefix rows are compared with.

Samples of similar length share a batch, so that little is padded; every one has its own prompt and
history, and items are encoded once a batch. A sample is (history, target).
"""

import collections
import math
from collections.abc import Sequence

import jax
import numpy as np

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.packing import Batch, Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.flops import Work
from mmesid_jax.models.sequence_recommender import RecommenderModel

Sample = tuple[np.ndarray, int]
SMALLEST = 8  # row


def by_length(
  samples: Sequence[Sample], response: int, most: int
) -> list[tuple[int, list[Sample]]]:
  """(row length, samples) of every batch: each sample in the smallest power of two that holds it,
  at most so many a batch."""
  rows = collections.defaultdict(list)
  for history, target in samples:
    tokens = max(SMALLEST, len(history) + response)
    rows[1 << (tokens - 1).bit_length()].append((history, target))
  groups = []
  for T, those in sorted(rows.items()):
    parts = math.ceil(len(those) / most)
    groups += [(T, those[i::parts]) for i in range(parts)]
  return groups


def stacked(groups: Sequence[tuple[int, list[Sample]]], response: int) -> list[Batch]:
  """A batch a group: leaves [Q, ...] of batches of one sample each, but the distinct items of all.
  Groups of one row length are padded to one shape, so they compile once."""
  places = _most((T, len(samples)) for T, samples in groups)
  batches = []
  for T, samples in groups:
    layout = Layout(1, T, 1, response)
    sequences = [np.append(history, target) for history, target in samples]
    singles = list(batch_sequences(sequences, layout, [len(history) for history, _ in samples]))
    singles += [Packer(layout).batch()] * (places[T] - len(singles))
    item_QRT = np.stack([single.item_E[single.slot_RT] for single in singles])
    item_N, slot = np.unique(np.append(0, item_QRT), return_inverse=True)
    slot_QRT = slot[1:].reshape(item_QRT.shape).astype(np.int32)
    columns = Batch(*map(np.stack, zip(*singles, strict=True)))
    batches.append((T, columns._replace(item_E=item_N.astype(np.int32), slot_RT=slot_QRT)))
  items = _most((T, len(b.item_E)) for T, b in batches)
  return [b._replace(item_E=np.pad(b.item_E, (0, items[T] - len(b.item_E)))) for T, b in batches]


def _most(sizes) -> dict[int, int]:
  """Row length -> the largest of its sizes."""
  most = collections.defaultdict(int)
  for T, size in sizes:
    most[T] = max(most[T], size)
  return most


def hidden(model: RecommenderModel, batch: Batch, key: jax.Array | None = None) -> jax.Array:
  """o [Q, D] of a stacked batch."""
  axes = Batch(*[0] * len(Batch._fields))._replace(item_E=None)
  keys = None if key is None else jax.random.split(key, len(batch.read_Q))
  return jax.vmap(model.hidden, in_axes=(axes, 0))(batch, keys)[:, 0]


def work(samples: Sequence[Sample], prompt: int, response: int) -> Work:
  """What a step on the samples asks for."""
  n = np.array([prompt + len(history) + response for history, _ in samples])
  items = np.unique(np.concatenate([history for history, _ in samples]))
  return Work(int(n.sum()), 0, int((n * (n + 1) // 2).sum()), len(items), len(samples))
