"""The blend of network and evidence: score = evidence + weight * the network's score, and the best
candidates ranked again.

The weight depends on how much is known about what follows a history: with much evidence the network
helps, with little plain similarity is better.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.catalogue_scores import candidate_mask
from mmesid_jax.models.evidence import EvidenceModel
from mmesid_jax.models.extend_catalogue import mask_as_new
from mmesid_jax.models.generate.generated_ranking import GeneratedRanking
from mmesid_jax.models.layers.reranker import Reranker, RerankerParams
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.sharding import constrain, gather_columns, lookup_rows, top_k
from mmesid_jax.parallel.variables import Frozen

CANDIDATES = 100  # of each history that are ranked again
NETWORK_FEATURES = (-5, -1)  # places of those features that the network gives


def network_weight(weight_2: jax.Array, share_Q: jax.Array) -> jax.Array:
  """Weight [Q] of the network's score, from those at the two ends."""
  return weight_2[0] + (weight_2[1] - weight_2[0]) * share_Q


def has_items(history_QX: jax.Array) -> jax.Array:
  """Whether there is anything in a history, bool [Q]."""
  return (history_QX > 0).any(1)


class Candidates(NamedTuple):
  """The K items with the highest sums for each history, highest first; all where there are fewer
  than CANDIDATES."""

  item_QK: jax.Array  # int32
  score_QK: jax.Array  # the sums
  feature_QKF: jax.Array  # as `BlendModel.candidates` says


class BlendModel(nnx.Module):
  """Ranks items by the sum of two models that were trained separately, and then the best again.

  Args:
    network: the trained recommender.
    evidence: counts and content.
    amount_E: amounts of evidence (`EvidenceModel.evidence`), increasing.
    share_E: the share of the users who have less than each; straight lines between them.
    weight_2: weight of the network's score where evidence is least and most; between them it is
      linear in that share.
    reranker: ranks the CANDIDATES best again; None = the sum alone.
  """

  def __init__(
    self,
    network: RecommenderModel,
    evidence: EvidenceModel,
    amount_E: jax.Array,
    share_E: jax.Array,
    weight_2: jax.Array,
    reranker: Reranker | None = None,
  ):
    self.network, self.evidence, self.reranker = network, evidence, reranker
    self.amount_E = Frozen(jnp.asarray(amount_E, jnp.float32))
    self.share_E = Frozen(jnp.asarray(share_E, jnp.float32))
    self.weight_2 = Frozen(jnp.asarray(weight_2, jnp.float32))

  def replace(self, **parts: nnx.Module) -> "BlendModel":
    """A model with another network, evidence or reranker, which shares the rest."""
    old = {name: getattr(self, name) for name in ("network", "evidence", "reranker")}
    arrays = {name: getattr(self, name)[...] for name in ("amount_E", "share_E", "weight_2")}
    return BlendModel(**old | arrays | parts)

  def mask_as_new(self, new_I: jax.Array) -> "BlendModel":
    """A model that knows the items in new_I, bool [I], by their content alone."""
    network, evidence = mask_as_new(self.network, new_I), self.evidence.mask_as_new(new_I)
    return self.replace(network=network, evidence=evidence)

  def with_reranker(self, params: RerankerParams) -> "BlendModel":
    """A model with this reranker, which shares the rest."""
    return self.replace(reranker=Reranker(params))

  @property
  def num_items(self) -> int:
    """Number of items, without padding."""
    return self.network.num_items

  @property
  def num_features(self) -> int:
    """Number of features of a candidate, as `candidates` says."""
    return len(self.evidence.sources) + len(self.evidence.unit_IW) + 5

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of the summands of a score, as reasons show them."""
    reranking = () if self.reranker is None else ("reranking",)
    return (*self.network.sources, *self.evidence.sources, *reranking)

  def share(self, history_QX: jax.Array) -> jax.Array:
    """Share of the users who have less evidence than these histories, [Q]."""
    amount_Q = self.evidence.evidence(history_QX)
    return jnp.interp(amount_Q, self.amount_E[...], self.share_E[...])

  def weights(self, history_QX: jax.Array) -> jax.Array:
    """Weight of the network's score for each history, [Q]; 1 without a history."""
    weight_Q = network_weight(self.weight_2[...], self.share(history_QX))
    return jnp.where(has_items(history_QX), weight_Q, 1)

  def hidden(self, batch: Batch) -> jax.Array:
    """The network's hidden states [Q, D]."""
    return self.network.hidden(batch)

  def catalogue(self) -> jax.Array:
    """The network's vectors of all items, [I, D]."""
    return self.network.item_vectors()

  def _sums(self, o_QD, batch, catalogue) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sum, the network's scores and the transitions of all items, each [Q, I]."""
    network_QI = jax.lax.optimization_barrier(self.network.score_states(o_QD, batch, catalogue))
    transition_QI = self.evidence.transition_scores(batch.history_QX)
    evidence_QI = self.evidence.scores(batch.history_QX, transition_QI)
    evidence_QI = jnp.where(has_items(batch.history_QX)[:, None], evidence_QI, 0)
    score_QI = evidence_QI + self.weights(batch.history_QX)[:, None] * network_QI
    return score_QI, network_QI, transition_QI

  def score_states(self, o_QD: jax.Array, batch: Batch, catalogue: jax.Array) -> jax.Array:
    """Scores [Q, I] of all items from hidden(batch); the batch has histories.

    The scores of candidates that are ranked again change by 0 on average, and they stay above all
    other items: those of the others are lowered where this needs it. Without a history the network
    is asked alone.
    """
    sums = score_QI, *_ = self._sums(o_QD, batch, catalogue)
    if self.reranker is None:
      return score_QI
    # Without the barrier XLA for CPUs computes the candidates again for each of their uses: all in
    # all 3.8 times as long, for 64 histories and 12,086 items.
    candidates = jax.lax.optimization_barrier(self._candidates(batch, *sums))
    item_QK, old_QK, feature_QKF = candidates
    new_QK = self.reranker(old_QK, feature_QKF)
    new_QK += (old_QK - new_QK).mean(1, keepdims=True)
    excess_Q1 = jnp.maximum(old_QK[:, -1:] - new_QK.min(1, keepdims=True), 0)
    place_Q1 = jnp.arange(len(item_QK))[:, None]
    reranked_QI = (score_QI - excess_Q1).at[place_Q1, item_QK].set(new_QK)
    reranked_QI = jnp.where(has_items(batch.history_QX)[:, None], reranked_QI, score_QI)
    return constrain(reranked_QI, "targets", "items")

  def score_batch(self, batch: Batch, catalogue: jax.Array) -> jax.Array:
    """Scores [Q, I] of all items for the batch's targets; the batch has histories."""
    return self.score_states(self.hidden(batch), batch, catalogue)

  def static_table(self) -> jax.Array:
    """Vectors [I, V] of the items. Their products with `static_query` are the scores without the
    terms that depend on a history and an item together: transitions, repeats, reranking."""
    none_Q0 = jnp.zeros((1, 0), jnp.int32)
    tables = [table_IV for _, table_IV in self.evidence.products(none_Q0).values()]
    return jnp.concatenate([self.network.static_table(), *tables], axis=1)

  def static_query(self, o_QD: jax.Array, batch: Batch) -> jax.Array:
    """Vectors [Q, V] of the histories, from hidden(batch)."""
    products = self.evidence.products(batch.history_QX).values()
    of_evidence_QV = jnp.concatenate([query_QV for query_QV, _ in products], axis=1)
    of_evidence_QV = jnp.where(has_items(batch.history_QX)[:, None], of_evidence_QV, 0)
    of_network_QV = self.weights(batch.history_QX)[:, None] * o_QD
    return jnp.concatenate([of_network_QV, of_evidence_QV], axis=1)

  def candidates(self, batch: Batch, catalogue: jax.Array) -> Candidates:
    """The CANDIDATES items with the highest sums.

    Features of an item: what each source of evidence adds, in the order of its `sources`; of each
    modality the cosine with the closest past item; the logarithm of the network's probability.
    Features of the user, equal for all items: the share of users with less evidence, the logarithm
    of the number of past items, the log share of the newest, the highest log probability.
    """
    return self._candidates(batch, *self._sums(self.hidden(batch), batch, catalogue))

  def _candidates(self, batch, score_QI, network_QI, transition_QI) -> Candidates:
    history_QX = batch.history_QX
    is_item_I = candidate_mask(score_QI.shape[1], self.num_items)
    score_QK, item_QK = top_k(
      jnp.where(is_item_I, score_QI, -jnp.inf), min(CANDIDATES, self.num_items)
    )
    network_QI = jnp.where(is_item_I, network_QI, -jnp.inf)
    log_sum_Q = jax.nn.logsumexp(network_QI, axis=1)
    log_share_Q = lookup_rows(self.evidence.log_share_I[...], history_QX[:, 0])
    user_Q4 = jnp.stack(
      [
        self.share(history_QX),
        jnp.log1p((history_QX > 0).sum(1)),
        log_share_Q,
        network_QI.max(1) - log_sum_Q,
      ],
      axis=-1,
    )
    log_probability_QK = gather_columns(network_QI, item_QK) - log_sum_Q[:, None]
    feature_QKF = jnp.concatenate(
      [
        self.evidence.contributions(history_QX, item_QK, transition_QI),
        self.evidence.closest(history_QX, item_QK),
        log_probability_QK[..., None],
        jnp.broadcast_to(user_Q4[:, None], (*item_QK.shape, 4)),
      ],
      axis=-1,
    )
    return Candidates(item_QK, score_QK, feature_QKF)

  def contributions(self, o_QD: jax.Array, batch: Batch, item_QA: jax.Array) -> jax.Array:
    """Summands [Q, A, O] of the sums of A items, in the order of `sources`; o_QD: as above. What
    reranking adds is not among them."""
    weight_Q11 = self.weights(batch.history_QX)[:, None, None]
    of_network_QAO = weight_Q11 * self.network.contributions(o_QD, batch, item_QA)
    of_evidence_QAO = self.evidence.contributions(batch.history_QX, item_QA)
    known_Q11 = has_items(batch.history_QX)[:, None, None]
    return jnp.concatenate([of_network_QAO, jnp.where(known_Q11, of_evidence_QAO, 0)], axis=-1)


# The models that `recommend` serves.
ServableModel = RecommenderModel | BlendModel | GeneratedRanking


def score_parts(
  model: ServableModel, o_QD: jax.Array, batch: Batch, item_QA: jax.Array, score_QA: jax.Array
) -> jax.Array:
  """Summands [Q, A, O] of the scores of A items, in the order of the model's `sources`."""
  part_QAO = model.contributions(o_QD, batch, item_QA)
  if isinstance(model, BlendModel) and model.reranker is not None:
    rest_QA1 = (score_QA - part_QAO.sum(-1))[..., None]
    part_QAO = jnp.concatenate([part_QAO, rest_QA1], axis=-1)
  return part_QAO
