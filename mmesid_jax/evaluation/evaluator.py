"""Ranks every user's held-out item, by any model that reads packed batches or by fixed scores."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.data.batches import batch_pieces, with_histories
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.history_pieces import evaluation_pieces
from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout, Pieces, with_rows_for
from mmesid_jax.evaluation.metrics import UNMASKED, catalogue_summary
from mmesid_jax.evaluation.ranking import PROTOCOLS, summarize_ranks, target_ranks, top_items
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.parallel.sharding import constrain, device_put_batch, shard_count

NEVER = np.iinfo(np.int32).max  # the place of an item that is in no user's list


class RankingModel(Protocol):
  """A model that can be evaluated.

  score_batch(batch, catalogue) gives scores [Q, I], with padding in column 0 and in the columns
  after num_items; catalogue() computes once what is equal for all batches.
  """

  num_items: int

  def catalogue(self) -> Any: ...
  def score_batch(self, batch: Batch, catalogue: Any) -> jax.Array: ...


class SequenceModel(RankingModel, Protocol):
  """A model whose scores are products of states and item vectors: SASRec, the recommender."""

  def hidden(self, batch: Batch, key: jax.Array | None = None) -> jax.Array: ...
  def item_vectors(self) -> jax.Array: ...


class Ranking(NamedTuple):
  """Results of one model by protocol."""

  rank_U: dict[str, np.ndarray]  # int32 [U], the targets' ranks; users in the data set's order
  place_E: dict[str, np.ndarray]  # int32 [E], the items' best places in any user's list, or NEVER;
  # item 1 first; {} where no lists were asked for


@functools.partial(jax.jit, static_argnums=0)
def model_catalogue(graph: nnx.GraphDef, state: nnx.State) -> Any:
  """catalogue() of a model that nnx.split took apart; of a SequenceModel its vectors [I, D]."""
  return nnx.merge(graph, state).catalogue()


def _rank(score_QI: jax.Array, batch: Batch, length: int, num_items: int | None = None):
  """Ranks [Q] of both protocols, and lists [Q, A] of both, () for length 0."""
  ranks = target_ranks(score_QI, batch.target_Q, batch.history_QX, num_items)
  lists = top_items(score_QI, batch.history_QX, length, num_items) if length else ()
  # every process reads all of them
  return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), (ranks, lists))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _model_ranks(graph: nnx.GraphDef, state: nnx.State, catalogue: Any, batch: Batch, length: int):
  model = nnx.merge(graph, state)
  return _rank(model.score_batch(batch, catalogue), batch, length, model.num_items)


@functools.partial(jax.jit, static_argnums=2)
def _score_ranks(score_QI: jax.Array, batch: Batch, num_items: int):
  return _rank(score_QI, batch, 0, num_items)[0]


@functools.partial(jax.jit, static_argnums=0)
def _hidden(graph: nnx.GraphDef, state: nnx.State, batch: Batch):
  return constrain(nnx.merge(graph, state).hidden(batch), None, None)


@jax.jit
def _product_ranks(h_QD: jax.Array, item_ID: jax.Array, batch: Batch):
  return _rank(h_QD @ item_ID.T, batch, 0)


@functools.partial(jax.jit, static_argnums=2)
def _fixed_ranks(score_I: jax.Array, batch: Batch, length: int):
  score_QI = jnp.broadcast_to(score_I, (len(batch.target_Q), len(score_I)))
  return _rank(score_QI, batch, length)


class Evaluator:
  """The batches of a split, "valid" or "test", made once; any number of models can be evaluated.

  Of the layout, only the length of a row and the targets of a batch count: there are as many rows
  as these users need. Rows hold the newest items of a history that is longer than a row; the
  batches' history_QX, by which items are masked, holds whole histories. most_users: takes only this
  number of users, evenly spread; 0 = all. narrow: puts users with histories of about the same
  length into a batch, whose history_QX has few more columns than they need; each width compiles.
  """

  def __init__(
    self,
    dataset: Dataset,
    layout: Layout,
    split: str,
    *,
    most_users: int = 0,
    narrow: bool = False,
  ):
    self.num_items = dataset.num_items
    self.pieces = evaluation_pieces(dataset, layout, split, most_users)
    layout = with_rows_for(layout, self.pieces, shard_count("batch"))
    length_U = self.pieces.stop - 1
    order_U = np.argsort(length_U, kind="stable") if narrow else np.arange(len(self.pieces))
    ordered = Pieces(*(column[order_U] for column in self.pieces))
    histories = [
      dataset.sequence(user)[:length]
      for user, length in zip(self.pieces.user, length_U, strict=True)
    ]

    def numbered_as_before(batch: Batch) -> Batch:
      piece_Q = np.where(batch.piece_Q < 0, -1, order_U[batch.piece_Q]).astype(np.int32)
      return batch._replace(piece_Q=piece_Q)

    self._without_histories = [*map(numbered_as_before, batch_pieces(dataset, ordered, layout))]
    self._histories, self._narrow = histories, narrow
    self._longest = max(map(len, histories), default=1)

  def __len__(self) -> int:
    return len(self.pieces)

  def _host_batches(self) -> Iterator[Batch]:
    """Histories are added one batch after the other: all at once, they would take as much memory
    as if every user had the longest."""
    for batch in self._without_histories:
      longest = self._longest
      if self._narrow:
        longest = max(len(self._histories[piece]) for piece in batch.piece_Q if piece >= 0)
      yield with_histories(batch, self._histories, 1 << (longest - 1).bit_length())

  def batches(self) -> Iterator[Batch]:
    """Every batch, on the device."""
    return map(device_put_batch, self._host_batches())

  def model_ranking(self, model: RankingModel, length: int = 0) -> Ranking:
    """Ranks of the targets; with length > 0 also the items' places in lists of that length."""
    place_model(model)
    graph, state = nnx.split(model)  # once: taking a model apart costs more than a small batch
    catalogue, length = model_catalogue(graph, state), min(length, self.num_items)
    return self._ranking(lambda batch: _model_ranks(graph, state, catalogue, batch, length))

  def fixed_ranking(self, score_I: np.ndarray, length: int = 0) -> Ranking:
    """The same for one score an item, equal for all users (popularity)."""
    score_I, length = jnp.asarray(score_I), min(length, self.num_items)
    return self._ranking(lambda batch: _fixed_ranks(score_I, batch, length))

  def model_ranks(self, model: RankingModel) -> dict[str, np.ndarray]:
    """protocol -> int32 [U], users in the data set's order."""
    return self.model_ranking(model).rank_U

  def fixed_ranks(self, score_I: np.ndarray) -> dict[str, np.ndarray]:
    """protocol -> int32 [U], for one score an item."""
    return self.fixed_ranking(score_I).rank_U

  def shared_ranks(
    self, score: Callable[[Batch], Iterable[jax.Array]], models: int
  ) -> list[dict[str, np.ndarray]]:
    """Ranks of several models that share work: for each, protocol -> int32 [U].

    score: a batch on the device -> scores [Q, I] of each model, of which one is held at a time.
    """
    rank_U = [{p: np.zeros(len(self.pieces), np.int32) for p in PROTOCOLS} for _ in range(models)]
    for batch in self._host_batches():
      used_Q = batch.weight_Q > 0
      user_Q = batch.piece_Q[used_Q]
      placed = device_put_batch(batch)
      for of_model, score_QI in zip(rank_U, score(placed), strict=True):
        ranks = _score_ranks(score_QI, placed, self.num_items)
        for protocol, rank_Q in zip(PROTOCOLS, jax.device_get(ranks), strict=True):
          of_model[protocol][user_Q] = rank_Q[used_Q]
    return rank_U

  def states(self, model: SequenceModel) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states h [U, D] and item vectors [I, D]: the scores of user u are h[u] @ items.T."""
    place_model(model)
    graph, state = nnx.split(model)
    h_by_user: dict[int, np.ndarray] = {}
    for batch in self._host_batches():
      h_QD = jax.device_get(_hidden(graph, state, device_put_batch(batch)))
      h_by_user |= {int(u): h_QD[q] for q, u in enumerate(batch.piece_Q) if batch.weight_Q[q] > 0}
    h_UD = np.stack([h_by_user[user] for user in range(len(self.pieces))])
    whole_ID = jax.jit(lambda x_ID: constrain(x_ID, None, None))(model_catalogue(graph, state))
    return h_UD, jax.device_get(whole_ID)[: model.num_items + 1]

  def summed_ranks(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Ranks by the sum of several models' scores: protocol -> int32 [U].

    parts: results of `states`, of any layouts of this split. A user's log-probabilities are scores
    less a constant, so their sum ranks items in the same order.
    """
    h_UX = np.concatenate([h_UD for h_UD, _ in parts], axis=1)
    item_IX = jnp.asarray(np.concatenate([item_ID for _, item_ID in parts], axis=1))

    def rank(batch: Batch):
      return _product_ranks(h_UX[np.maximum(np.asarray(batch.piece_Q), 0)], item_IX, batch)

    return self._ranking(rank).rank_U

  def metrics(self, model: RankingModel, cutoffs: Sequence[int]) -> dict[str, float]:
    """Means for selection: masked ones as "HR@5", unmasked ones as "unmasked/HR@5"."""
    rank_U = self.model_ranks(model)
    prefixes = {"masked": "", "unmasked": UNMASKED}
    return {
      prefixes[protocol] + name: value["mean"]
      for protocol in PROTOCOLS
      for name, value in summarize_ranks(rank_U[protocol], cutoffs).items()
    }

  def _ranking(self, rank: Callable[[Batch], tuple]) -> Ranking:
    """rank: a batch -> ranks [Q] and lists [Q, A] of the protocols."""
    rank_U = {protocol: np.zeros(len(self.pieces), np.int32) for protocol in PROTOCOLS}
    best_places: dict[str, np.ndarray] = {}
    for batch in self._host_batches():
      used_Q = batch.weight_Q > 0
      ranks, lists = jax.device_get(rank(device_put_batch(batch)))
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
