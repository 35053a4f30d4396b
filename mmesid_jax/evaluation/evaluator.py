"""Ranks every user's held-out item, by any model that reads packed batches or by fixed scores."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.data.batches import batch_pieces
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.history_pieces import evaluation_pieces
from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout, with_rows_for
from mmesid_jax.evaluation.metrics import UNMASKED, catalogue_summary
from mmesid_jax.evaluation.ranking import PROTOCOLS, summarize_ranks, target_ranks, top_items
from mmesid_jax.models.catalogue_scores import Scorer
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.parallel.sharding import constrain, device_put_batch, shard_count

NEVER = np.iinfo(np.int32).max  # the place of an item that is in no user's list


class SequenceModel(Protocol):
  """A model that can be evaluated, such as SASRec and the recommender."""

  num_items: int  # item_vectors has padding in row 0 and in the rows after these

  def hidden(self, batch: Batch, key: jax.Array | None = None) -> jax.Array: ...
  def item_vectors(self) -> jax.Array: ...


class Ranking(NamedTuple):
  """Results of one model by protocol."""

  rank_U: dict[str, np.ndarray]  # int32 [U], the targets' ranks; users in the data set's order
  place_E: dict[str, np.ndarray]  # int32 [E], the items' best places in any user's list, or NEVER;
  # item 1 first; {} where no lists were asked for


@functools.partial(jax.jit, static_argnums=0)
def item_vectors(graph: nnx.GraphDef, state: nnx.State) -> jax.Array:
  """[I, D], the item vectors of a SequenceModel that nnx.split took apart."""
  return nnx.merge(graph, state).item_vectors()


def _rank(score_QI, target_Q, history_QH, length: int, num_items: int | None = None):
  """Ranks [Q] of both protocols, and lists [Q, A] of both, () for length 0."""
  ranks = target_ranks(score_QI, target_Q, history_QH, num_items)
  lists = top_items(score_QI, history_QH, length, num_items) if length else ()
  # every process reads all of them
  return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), (ranks, lists))


@functools.partial(jax.jit, static_argnums=(0, 5))
def _model_ranks(
  graph: nnx.GraphDef,
  state: nnx.State,
  item_ID: jax.Array,
  batch: Batch,
  history_QH: jax.Array,
  length: int,
):
  model = nnx.merge(graph, state)
  score_QI = Scorer((model.hidden(batch),), (item_ID,)).score_all()
  return _rank(score_QI, batch.target_Q, history_QH, length, model.num_items)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(graph: nnx.GraphDef, state: nnx.State, batch: Batch):
  return constrain(nnx.merge(graph, state).hidden(batch), None, None)


@jax.jit
def _product_ranks(h_QD: jax.Array, item_ID: jax.Array, target_Q: jax.Array, history_QH: jax.Array):
  return _rank(h_QD @ item_ID.T, target_Q, history_QH, 0)


@functools.partial(jax.jit, static_argnums=3)
def _fixed_ranks(score_I: jax.Array, target_Q: jax.Array, history_QH: jax.Array, length: int):
  score_QI = jnp.broadcast_to(score_I, (len(target_Q), len(score_I)))
  return _rank(score_QI, target_Q, history_QH, length)


class Evaluator:
  """The batches of a split, "valid" or "test", made once; any number of models can be evaluated.

  Of the layout, only the length of a row and the targets of a batch count: there are as many rows
  as these users need. A history longer than a row is cut to its newest items; the mask always holds
  the whole history.
  """

  def __init__(self, dataset: Dataset, layout: Layout, split: str):
    self.num_items = dataset.num_items
    self.pieces = evaluation_pieces(dataset, layout, split)
    layout = with_rows_for(layout, self.pieces, shard_count("batch"))
    self._batches = list(batch_pieces(dataset, self.pieces, layout))
    lengths = self.pieces.stop - 1
    self._history_UH = np.zeros((len(self.pieces), int(lengths.max(initial=1))), np.int32)
    for row, (user, length) in enumerate(zip(self.pieces.user, lengths, strict=True)):
      self._history_UH[row, :length] = dataset.sequence(user)[:length]

  def __len__(self) -> int:
    return len(self.pieces)

  def model_ranking(self, model: SequenceModel, length: int = 0) -> Ranking:
    """Ranks of the targets; with length > 0 also the items' places in lists of that length."""
    place_model(model)
    graph, state = nnx.split(model)  # once: taking a model apart costs more than a small batch
    item_ID, length = item_vectors(graph, state), min(length, self.num_items)
    return self._ranking(
      lambda batch, history_QH: _model_ranks(graph, state, item_ID, batch, history_QH, length)
    )

  def fixed_ranking(self, score_I: np.ndarray, length: int = 0) -> Ranking:
    """The same for one score an item, equal for all users (popularity)."""
    score_I, length = jnp.asarray(score_I), min(length, self.num_items)
    return self._ranking(
      lambda batch, history_QH: _fixed_ranks(score_I, batch.target_Q, history_QH, length)
    )

  def model_ranks(self, model: SequenceModel) -> dict[str, np.ndarray]:
    """protocol -> int32 [U], users in the data set's order."""
    return self.model_ranking(model).rank_U

  def fixed_ranks(self, score_I: np.ndarray) -> dict[str, np.ndarray]:
    """protocol -> int32 [U], for one score an item."""
    return self.fixed_ranking(score_I).rank_U

  def states(self, model: SequenceModel) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states h [U, D] and item vectors [I, D]: the scores of user u are h[u] @ items.T."""
    place_model(model)
    graph, state = nnx.split(model)
    h_by_user: dict[int, np.ndarray] = {}
    for batch in self._batches:
      h_QD = jax.device_get(_hidden(graph, state, device_put_batch(batch)))
      h_by_user |= {int(u): h_QD[q] for q, u in enumerate(batch.piece_Q) if batch.weight_Q[q] > 0}
    h_UD = np.stack([h_by_user[user] for user in range(len(self.pieces))])
    whole_ID = jax.jit(lambda x_ID: constrain(x_ID, None, None))(item_vectors(graph, state))
    return h_UD, jax.device_get(whole_ID)[: model.num_items + 1]

  def summed_ranks(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Ranks by the sum of several models' scores: protocol -> int32 [U].

    parts: results of `states`, of any layouts of this split. A user's log-probabilities are scores
    less a constant, so their sum ranks items in the same order.
    """
    h_UX = np.concatenate([h_UD for h_UD, _ in parts], axis=1)
    item_IX = jnp.asarray(np.concatenate([item_ID for _, item_ID in parts], axis=1))

    def rank(batch: Batch, history_QH: np.ndarray):
      h_QX = h_UX[np.maximum(np.asarray(batch.piece_Q), 0)]
      return _product_ranks(h_QX, item_IX, batch.target_Q, history_QH)

    return self._ranking(rank).rank_U

  def metrics(self, model: SequenceModel, cutoffs: Sequence[int]) -> dict[str, float]:
    """Means for selection: masked ones as "HR@5", unmasked ones as "unmasked/HR@5"."""
    rank_U = self.model_ranks(model)
    prefixes = {"masked": "", "unmasked": UNMASKED}
    return {
      prefixes[protocol] + name: value["mean"]
      for protocol in PROTOCOLS
      for name, value in summarize_ranks(rank_U[protocol], cutoffs).items()
    }

  def _ranking(self, rank: Callable[[Batch, np.ndarray], tuple]) -> Ranking:
    """rank: (batch, history_QH) -> ranks [Q] and lists [Q, A] of the protocols."""
    rank_U = {protocol: np.zeros(len(self.pieces), np.int32) for protocol in PROTOCOLS}
    best_places: dict[str, np.ndarray] = {}
    for batch in self._batches:
      used_Q = batch.weight_Q > 0
      history_QH = self._history_UH[np.maximum(batch.piece_Q, 0)]
      ranks, lists = jax.device_get(rank(device_put_batch(batch), history_QH))
      for protocol, rank_Q in zip(PROTOCOLS, ranks, strict=True):
        rank_U[protocol][batch.piece_Q[used_Q]] = rank_Q[used_Q]
      for protocol, item_QA in zip(PROTOCOLS, lists, strict=False):  # nothing without lists
        best_I = best_places.setdefault(protocol, np.full(self.num_items + 1, NEVER, np.int32))
        for place, item_E in enumerate(item_QA[used_Q].T, 1):
          best_I[item_E] = np.minimum(best_I[item_E], place)
    return Ranking(rank_U, {protocol: best_I[1:] for protocol, best_I in best_places.items()})


def summarize_ranking(
  ranking: Ranking, cutoffs: Sequence[int], *, resamples: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
  """protocol -> metric -> "mean", and of the users' metrics the 95 % interval "low", "high".

  Metrics of the catalogue are there where the ranking holds places."""
  options = {"resamples": resamples, "seed": seed}
  result = {p: summarize_ranks(rank_U, cutoffs, **options) for p, rank_U in ranking.rank_U.items()}
  for protocol, place_E in ranking.place_E.items():
    result[protocol] |= catalogue_summary(place_E, cutoffs)
  return result
