"""Ranks of items that training never saw: by a model, by content alone, and by chance."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.data.batches import batch_sequences, with_histories
from mmesid_jax.data.held_out_items import Cases
from mmesid_jax.data.row_layout import Layout, Pieces, with_rows_for
from mmesid_jax.display import reporter
from mmesid_jax.evaluation.evaluator import RankingModel, model_catalogue
from mmesid_jax.evaluation.metrics import user_values
from mmesid_jax.evaluation.ranking import target_ranks

CANDIDATES = ("all items", "cold only")
LAST = (1, 2, 3, 5, 10, 20)  # newest items of a history that the content baseline may average
SELECT = "nDCG@10"
CHUNK = 256  # cases that are ranked at once


def cold_ranks(
  score_QI: jax.Array, item_Q: jax.Array, had_QX: jax.Array, warm: int
) -> tuple[jax.Array, jax.Array]:
  """int32 [Q] ranks of cold items (ids above `warm`) among all items, and among the cold ones only.

  Items that a user had are no candidates, ties count against the item, column 0 is padding.
  """

  def cold_id(item):
    return jnp.maximum(item - warm, 0)  # 0 for warm items: padding

  among_all_Q, _ = target_ranks(score_QI, item_Q, had_QX)
  among_cold_Q, _ = target_ranks(score_QI[:, warm:], cold_id(item_Q), cold_id(had_QX))
  return among_all_Q, among_cold_Q


@functools.partial(jax.jit, static_argnums=(0, 6))
def _model_ranks(graph, state, catalogue, batch, item_Q, had_QX, warm: int):
  score_QI = nnx.merge(graph, state).score_batch(batch, catalogue)
  return cold_ranks(score_QI, item_Q, had_QX, warm)


def model_ranks(
  model: RankingModel, cases: Cases, layout: Layout, warm: int
) -> dict[str, np.ndarray]:
  """candidates -> int32 [Q], ranks by a model whose items above `warm` are the cold ones.

  Of the layout, only the length of a row and the targets of a batch count. Longer histories are cut
  to their newest items.
  """
  sequences = [
    np.append(history[-layout.longest_history :], item)
    for history, item in zip(cases.history, cases.item_Q, strict=True)
  ]
  stop = np.array([len(x) for x in sequences])
  pieces = Pieces(np.arange(len(cases)), np.zeros_like(stop), stop, stop - 1)
  columns = max(map(len, cases.history), default=1)
  graph, state = nnx.split(model)
  catalogue = model_catalogue(graph, state)
  ranks = {name: np.zeros(len(cases), np.int32) for name in CANDIDATES}
  with reporter.progress(label="cold items", total=len(cases), unit="targets") as bar:
    for batch in batch_sequences(sequences, with_rows_for(layout, pieces), (stop - 1).tolist()):
      batch = with_histories(batch, cases.history, columns)
      used_Q, had_QX = batch.weight_Q > 0, cases.had_QX[np.maximum(batch.piece_Q, 0)]
      of_batch = _model_ranks(graph, state, catalogue, batch, batch.target_Q, had_QX, warm)
      for name, rank_Q in zip(CANDIDATES, jax.device_get(of_batch), strict=True):
        ranks[name][batch.piece_Q[used_Q]] = rank_Q[used_Q]
      bar.update(int(used_Q.sum()))
  return ranks


def content_vectors(features: Mapping[str, np.ndarray]) -> np.ndarray:
  """float32 [I, V]: unit vectors of all modalities side by side; rows of zeros stay zero.

  A dot product of two rows is the sum of the modalities' cosines.
  """
  parts = [
    x_IV / np.maximum(np.linalg.norm(x_IV, axis=1, keepdims=True), 1e-12)
    for x_IV in features.values()
  ]
  return np.concatenate(parts, 1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _nearest(rank: Callable, content_IV, query_QV, item_Q, had_QX):
  return rank(query_QV @ content_IV.T, item_Q, had_QX)


def _nearest_ranks(content_IV: np.ndarray, cases: Cases, last: int, rank: Callable):
  table_IV, ranks = jnp.asarray(content_IV), []
  for at in reporter.progress(range(0, len(cases), CHUNK), f"nearest to {last}"):
    chunk = slice(at, at + CHUNK)
    query_QV = np.stack([content_IV[h[-last:]].mean(0) for h in cases.history[chunk]])
    item_Q, had_QX = cases.item_Q[chunk], cases.had_QX[chunk]
    ranks.append(jax.device_get(_nearest(rank, table_IV, query_QV, item_Q, had_QX)))
  return [np.concatenate(part) for part in zip(*ranks, strict=True)]


def nearest_ranks(
  content_IV: np.ndarray, cases: Cases, last: int, warm: int
) -> dict[str, np.ndarray]:
  """candidates -> int32 [Q], ranks by the dot product of an item's content and the mean content of
  the `last` newest items of the history."""
  rank = functools.partial(cold_ranks, warm=warm)
  return dict(zip(CANDIDATES, _nearest_ranks(content_IV, cases, last, rank), strict=True))


def ndcg_by_last(content_IV: np.ndarray, cases: Cases) -> dict[int, float]:
  """Number of newest items averaged -> nDCG@10 of the content baseline, without cold items."""
  result = {}
  for last in LAST:
    rank_Q, _ = _nearest_ranks(content_IV, cases, last, target_ranks)
    result[last] = float(user_values(rank_Q, [10])[SELECT].mean())
  return result


def chance_metrics(cases: Cases, warm: int, cold: int, cutoffs: Sequence[int]) -> dict[str, dict]:
  """candidates -> metric -> {"mean"}: the expectation for a random order of the candidates."""
  had_cold_Q = (cases.had_QX > warm).sum(1)
  had_Q = (cases.had_QX > 0).sum(1)
  result = {}
  for name, number_Q in zip(CANDIDATES, (warm + cold - had_Q, cold - had_cold_Q), strict=True):
    gain_by_rank = user_values(np.arange(1, number_Q.max() + 1), cutoffs)
    result[name] = {
      metric: {"mean": float((np.cumsum(gain)[number_Q - 1] / number_Q).mean())}
      for metric, gain in gain_by_rank.items()
    }
  return result
