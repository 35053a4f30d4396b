"""The recommender beside evidence: score = evidence + weight * the network's score.

The weight of a query rises with how much is known about what follows its history: a network is good
at combining many hints, and worse than plain similarity where there are few.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.catalogue_scores import Scorer
from mmesid_jax.models.evidence import EvidenceModel
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.variables import Frozen


class BlendModel(nnx.Module):
  """Ranks items by the sum of two models that were made apart.

  Args:
    network: the trained recommender.
    evidence: counts and content.
    quantile_E: amounts of evidence (`EvidenceModel.evidence`) that equal shares of the users have
      at most, from the least to the most, increasing.
    weight_2: weight of the network's score where evidence is least and most; between them it rises
      in a straight line with the share of users who have less evidence.
  """

  def __init__(
    self,
    network: RecommenderModel,
    evidence: EvidenceModel,
    quantile_E: jax.Array,
    weight_2: jax.Array,
  ):
    self.network, self.evidence = network, evidence
    self.quantile_E = Frozen(jnp.asarray(quantile_E, jnp.float32))
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
    quantile_E = self.quantile_E[...]
    share_E = jnp.linspace(0, 1, len(quantile_E))
    return jnp.interp(self.evidence.evidence(history_QX), quantile_E, share_E)

  def weights(self, history_QX: jax.Array) -> jax.Array:
    """Weight of the network's score for each history, [Q]."""
    least, most = self.weight_2[...]
    return least + (most - least) * self.share(history_QX)

  def catalogue(self) -> jax.Array:
    """The network's vectors of all items, [I, D]."""
    return self.network.item_vectors()

  def score_batch(self, batch: Batch, catalogue: jax.Array) -> jax.Array:
    """Scores [Q, I] of all items for the batch's targets; its layout has histories."""
    o_QD = self.network.hidden(batch) * self.weights(batch.history_QX)[:, None]
    beside = Scorer((o_QD,), (catalogue,), num_items=self.num_items)
    return self.evidence.scorer(batch.history_QX, beside).score_all()

  def contributions(self, batch: Batch, item_QA: jax.Array) -> jax.Array:
    """Summands [Q, A, O] of the scores of A items for each target, in the order of `sources`."""
    weight_Q11 = self.weights(batch.history_QX)[:, None, None]
    of_network_QAO = weight_Q11 * self.network.contributions(batch, item_QA)
    return jnp.concatenate(
      [of_network_QAO, self.evidence.contributions(batch.history_QX, item_QA)], axis=-1
    )
