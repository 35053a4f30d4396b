"""Ranks of items that training never saw: by a model, by content alone, and by chance."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.held_out_items import Cases
from mmesid_jax.data.packing import Layout, Pieces, with_rows_for
from mmesid_jax.evaluation.evaluator import SequenceModel, item_vectors
from mmesid_jax.evaluation.metrics import user_values
from mmesid_jax.evaluation.ranking import target_ranks

CANDIDATES = ("all items", "cold only")
LAST = (1, 2, 3, 5, 10, 20)  # of the history's items that the content baseline may average
SELECT = "nDCG@10"
CHUNK = 256  # cases ranked at once


def cold_ranks(
  score_QI: jax.Array, item_Q: jax.Array, had_QX: jax.Array, warm: int
) -> tuple[jax.Array, jax.Array]:
  """int32 [Q] ranks of cold items (ids above `warm`) among all items and among the cold ones alone;
  what a user had is no candidate, ties count against the item, column 0 is padding."""

  def behind(item):
    return jnp.maximum(item - warm, 0)

  among_all_Q, _ = target_ranks(score_QI, item_Q, had_QX)
  among_cold_Q, _ = target_ranks(score_QI[:, warm:], behind(item_Q), behind(had_QX))
  return among_all_Q, among_cold_Q


@functools.partial(jax.jit, static_argnums=(0, 6))
def _model_ranks(graph, state, item_ID, batch, item_Q, had_QX, warm: int):
  h_QD = nnx.merge(graph, state).hidden(batch)
  return cold_ranks(h_QD @ item_ID.T, item_Q, had_QX, warm)


def model_ranks(
  model: SequenceModel, cases: Cases, layout: Layout, warm: int
) -> dict[str, np.ndarray]:
  """candidates -> int32 [Q], by a model whose items above `warm` are the cold ones. Of the layout
  count the length of a row and the targets of a batch; longer histories are read from their newest
  items on."""
  sequences = [
    np.append(history[-layout.longest_history :], item)
    for history, item in zip(cases.history, cases.item_Q, strict=True)
  ]
  stop = np.array([len(x) for x in sequences])
  pieces = Pieces(np.arange(len(cases)), np.zeros_like(stop), stop, stop - 1)
  graph, state = nnx.split(model)
  item_ID = item_vectors(graph, state)
  found = {name: np.zeros(len(cases), np.int32) for name in CANDIDATES}
  with tqdm(total=len(cases), desc="cold items", unit="targets", delay=3, leave=False) as bar:
    for batch in batch_sequences(sequences, with_rows_for(layout, pieces), (stop - 1).tolist()):
      used_Q, had_QX = batch.weight_Q > 0, cases.had_QX[np.maximum(batch.piece_Q, 0)]
      ranked = _model_ranks(graph, state, item_ID, batch, batch.target_Q, had_QX, warm)
      for name, rank_Q in zip(CANDIDATES, jax.device_get(ranked), strict=True):
        found[name][batch.piece_Q[used_Q]] = rank_Q[used_Q]
      bar.update(int(used_Q.sum()))
  return found


def content(features: Mapping[str, np.ndarray]) -> np.ndarray:
  """float32 [I, V]: unit vectors of every modality side by side, so that a dot product is the sum
  of the modalities' cosines. A row of zeros stays one."""
  parts = [
    x_IV / np.maximum(np.linalg.norm(x_IV, axis=1, keepdims=True), 1e-12)
    for x_IV in features.values()
  ]
  return np.concatenate(parts, 1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _nearest(rank: Callable, content_IV, query_QV, item_Q, had_QX):
  return rank(query_QV @ content_IV.T, item_Q, had_QX)


def _nearest_ranks(content_IV: np.ndarray, cases: Cases, last: int, rank: Callable):
  table_IV, found = jnp.asarray(content_IV), []
  for at in tqdm(range(0, len(cases), CHUNK), f"nearest to {last}", delay=3, leave=False):
    some = slice(at, at + CHUNK)
    query_QV = np.stack([content_IV[h[-last:]].mean(0) for h in cases.history[some]])
    given = cases.item_Q[some], cases.had_QX[some]
    found.append(jax.device_get(_nearest(rank, table_IV, query_QV, *given)))
  return [np.concatenate(part) for part in zip(*found, strict=True)]


def nearest_ranks(
  content_IV: np.ndarray, cases: Cases, last: int, warm: int
) -> dict[str, np.ndarray]:
  """candidates -> int32 [Q], by the cosine between an item's content and the mean of the `last`
  newest items of the history."""
  rank = functools.partial(cold_ranks, warm=warm)
  return dict(zip(CANDIDATES, _nearest_ranks(content_IV, cases, last, rank), strict=True))


def choose_last(content_IV: np.ndarray, cases: Cases) -> dict[int, float]:
  """nDCG@10 of the content baseline on cases without cold items, by how many items it averages."""
  found = {}
  for last in LAST:
    rank_Q, _ = _nearest_ranks(content_IV, cases, last, target_ranks)
    found[last] = float(user_values(rank_Q, [10])[SELECT].mean())
  return found


def chance(cases: Cases, warm: int, cold: int, cutoffs: Sequence[int]) -> dict[str, dict]:
  """candidates -> metric -> {"mean"}: what a random order of the candidates is to be expected to
  reach."""
  had_cold_Q = (cases.had_QX > warm).sum(1)
  had_Q = (cases.had_QX > 0).sum(1)
  result = {}
  for name, number_Q in zip(CANDIDATES, (warm + cold - had_Q, cold - had_cold_Q), strict=True):
    gain_by_rank = user_values(
      np.arange(1, number_Q.max() + 1), cutoffs
    )  # one rank after the other
    result[name] = {
      metric: {"mean": float((np.cumsum(gain)[number_Q - 1] / number_Q).mean())}
      for metric, gain in gain_by_rank.items()
    }
  return result
