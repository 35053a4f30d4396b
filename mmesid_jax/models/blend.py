"""The blend of network and evidence: score = evidence + weight * the network's score.

The weight depends on how much is known about what follows a history: with much evidence the network
helps, with little plain similarity is better.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.evidence import EvidenceModel
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.variables import Frozen


def network_weight(weight_2: jax.Array, share_Q: jax.Array) -> jax.Array:
  """Weight [Q] of the network's score, from those at the two ends."""
  return weight_2[0] + (weight_2[1] - weight_2[0]) * share_Q


class BlendModel(nnx.Module):
  """Ranks items by the sum of two models that were trained separately.

  Args:
    network: the trained recommender.
    evidence: counts and content.
    amount_E: amounts of evidence (`EvidenceModel.evidence`), increasing.
    share_E: the share of the users who have less than each; straight lines between them.
    weight_2: weight of the network's score where evidence is least and most; between them it is
      linear in that share.
  """

  def __init__(
    self,
    network: RecommenderModel,
    evidence: EvidenceModel,
    amount_E: jax.Array,
    share_E: jax.Array,
    weight_2: jax.Array,
  ):
    self.network, self.evidence = network, evidence
    self.amount_E = Frozen(jnp.asarray(amount_E, jnp.float32))
    self.share_E = Frozen(jnp.asarray(share_E, jnp.float32))
    self.weight_2 = Frozen(jnp.asarray(weight_2, jnp.float32))

  @property
  def num_items(self) -> int:
    """Number of items, without padding."""
    return self.network.num_items

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of the summands of a score, as reasons show them."""
    return (*self.network.sources, *self.evidence.sources)

  def share(self, history_QX: jax.Array) -> jax.Array:
    """Share of the users who have less evidence than these histories, [Q]."""
    amount_Q = self.evidence.evidence(history_QX)
    return jnp.interp(amount_Q, self.amount_E[...], self.share_E[...])

  def weights(self, history_QX: jax.Array) -> jax.Array:
    """Weight of the network's score for each history, [Q]."""
    return network_weight(self.weight_2[...], self.share(history_QX))

  def hidden(self, batch: Batch) -> jax.Array:
    """The network's hidden states [Q, D]."""
    return self.network.hidden(batch)

  def catalogue(self) -> jax.Array:
    """The network's vectors of all items, [I, D]."""
    return self.network.item_vectors()

  def score_states(self, o_QD: jax.Array, batch: Batch, catalogue: jax.Array) -> jax.Array:
    """Scores [Q, I] of all items from hidden(batch); the batch's layout has histories."""
    weighted_QD = o_QD * self.weights(batch.history_QX)[:, None]
    return self.evidence.scores(batch.history_QX, (weighted_QD, catalogue))

  def score_batch(self, batch: Batch, catalogue: jax.Array) -> jax.Array:
    """Scores [Q, I] of all items for the batch's targets; its layout has histories."""
    return self.score_states(self.hidden(batch), batch, catalogue)

  def contributions(self, o_QD: jax.Array, batch: Batch, item_QA: jax.Array) -> jax.Array:
    """Summands [Q, A, O] of the scores of A items, in the order of `sources`; o_QD: as above."""
    weight_Q11 = self.weights(batch.history_QX)[:, None, None]
    of_network_QAO = weight_Q11 * self.network.contributions(o_QD, batch, item_QA)
    return jnp.concatenate(
      [of_network_QAO, self.evidence.contributions(batch.history_QX, item_QA)], axis=-1
    )


# What `recommend` serves: the blend where there is one, else the network alone.
ServableModel = RecommenderModel | BlendModel
