"""Ranks every user's held-out item with any model that reads packed batches, or with fixed
scores."""

import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.data.batches import batch_pieces
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.packing import Batch, Layout, evaluation_pieces, with_rows_for
from mmesid_jax.evaluation.ranking import PROTOCOLS, ranks, summary
from mmesid_jax.models.catalogue_scores import Scorer
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.parallel.sharding import constrain, device_put_batch, shard_count


class SequenceModel(Protocol):
  """What can be evaluated: SASRec and the recommender are."""

  num_items: int  # rows of item_vectors behind these, and row 0, are no items

  def hidden(self, batch: Batch, key: jax.Array | None = None) -> jax.Array: ...
  def item_vectors(self) -> jax.Array: ...


@functools.partial(jax.jit, static_argnums=0)
def item_vectors(graph: nnx.GraphDef, state: nnx.State) -> jax.Array:
  """[I, D] of a SequenceModel that nnx.split took apart."""
  return nnx.merge(graph, state).item_vectors()


@functools.partial(jax.jit, static_argnums=0)
def _model_ranks(
  graph: nnx.GraphDef, state: nnx.State, item_ID: jax.Array, batch: Batch, history_QH: jax.Array
):
  model = nnx.merge(graph, state)
  score_QI = Scorer((model.hidden(batch),), (item_ID,)).all()
  found = ranks(score_QI, batch.target_Q, history_QH, model.num_items)
  return tuple(constrain(rank_Q, None) for rank_Q in found)  # every process reads all of them


@functools.partial(jax.jit, static_argnums=0)
def _hidden(graph: nnx.GraphDef, state: nnx.State, batch: Batch):
  return constrain(nnx.merge(graph, state).hidden(batch), None, None)


@jax.jit
def _product_ranks(h_QD: jax.Array, item_ID: jax.Array, target_Q: jax.Array, history_QH: jax.Array):
  return ranks(h_QD @ item_ID.T, target_Q, history_QH)


@jax.jit
def _fixed_ranks(score_I: jax.Array, target_Q: jax.Array, history_QH: jax.Array):
  return ranks(jnp.broadcast_to(score_I, (len(target_Q), len(score_I))), target_Q, history_QH)


class Evaluator:
  """The split's batches, made once; a model may be judged any number of times. split: "valid" or
  "test".

  Of the layout count the length of a row and the targets of a batch: rows are as many as these
  users take. A history longer than a row is read from its newest items on; the mask always holds
  the whole of it.
  """

  def __init__(self, dataset: Dataset, layout: Layout, split: str):
    self.pieces = evaluation_pieces(dataset, layout, split)
    layout = with_rows_for(layout, self.pieces, shard_count("batch"))
    self._batches = list(batch_pieces(dataset, self.pieces, layout))
    lengths = self.pieces.stop - 1
    self._history_UH = np.zeros((len(self.pieces), int(lengths.max(initial=1))), np.int32)
    for row, (user, length) in enumerate(zip(self.pieces.user, lengths, strict=True)):
      self._history_UH[row, :length] = dataset.sequence(user)[:length]

  def __len__(self) -> int:
    return len(self.pieces)

  def model_ranks(self, model: SequenceModel) -> dict[str, np.ndarray]:
    """protocol -> int32 [U], users in the data set's order."""
    place_model(model)
    graph, state = nnx.split(model)  # once: taking a model apart costs more than a small batch
    item_ID = item_vectors(graph, state)
    return self._ranks(lambda *given: _model_ranks(graph, state, item_ID, *given))

  def fixed_ranks(self, score_I: np.ndarray) -> dict[str, np.ndarray]:
    """The same for one score an item, whoever asks (popularity)."""
    score_I = jnp.asarray(score_I)
    return self._ranks(lambda batch, history_QH: _fixed_ranks(score_I, batch.target_Q, history_QH))

  def states(self, model: SequenceModel) -> tuple[np.ndarray, np.ndarray]:
    """h [U, D] and the item vectors [I, D]: user u's scores are h[u] @ items.T."""
    place_model(model)
    graph, state = nnx.split(model)
    found: dict[int, np.ndarray] = {}
    for batch in self._batches:
      h_QD = jax.device_get(_hidden(graph, state, device_put_batch(batch)))
      found |= {int(u): h_QD[q] for q, u in enumerate(batch.piece_Q) if batch.weight_Q[q] > 0}
    h_UD = np.stack([found[user] for user in range(len(self.pieces))])
    whole_ID = jax.jit(lambda x_ID: constrain(x_ID, None, None))(item_vectors(graph, state))
    return h_UD, jax.device_get(whole_ID)[: model.num_items + 1]

  def summed_ranks(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """As `model_ranks`, of the sum of several models' scores; parts are what `states` gave, of any
    layouts of this split.

    A user's log-probabilities are scores less a constant, so their sum ranks alike.
    """
    h_UX = np.concatenate([h_UD for h_UD, _ in parts], axis=1)
    item_IX = jnp.asarray(np.concatenate([item_ID for _, item_ID in parts], axis=1))

    def rank(batch: Batch, history_QH: np.ndarray):
      h_QX = h_UX[np.maximum(np.asarray(batch.piece_Q), 0)]
      return _product_ranks(h_QX, item_IX, batch.target_Q, history_QH)

    return self._ranks(rank)

  def metrics(self, model: SequenceModel, cutoffs) -> dict[str, float]:
    """Flat metrics for selection: masked under their plain names, unmasked under "unmasked/"."""
    found = self.model_ranks(model)
    flat = {name: v["mean"] for name, v in summary(found["masked"], cutoffs).items()}
    for name, v in summary(found["unmasked"], cutoffs).items():
      flat[f"unmasked/{name}"] = v["mean"]
    return flat

  def _ranks(self, rank) -> dict[str, np.ndarray]:
    result = {protocol: np.zeros(len(self.pieces), np.int32) for protocol in PROTOCOLS}
    for batch in self._batches:
      used_Q = batch.weight_Q > 0
      history_QH = self._history_UH[np.maximum(batch.piece_Q, 0)]
      found = jax.device_get(rank(device_put_batch(batch), history_QH))
      for protocol, rank_Q in zip(PROTOCOLS, found, strict=True):
        result[protocol][batch.piece_Q[used_Q]] = rank_Q[used_Q]
    return result


def judge(rank: Mapping[str, np.ndarray], cutoffs, *, resamples: int, seed: int) -> dict:
  """protocol -> metric -> mean and 95 % interval, from ranks by protocol."""
  return {p: summary(r, cutoffs, resamples=resamples, seed=seed) for p, r in rank.items()}
