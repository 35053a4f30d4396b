"""Evidence for the next item that is not trained: counted transitions, popularity, like content.

score(i) = sum_j w_j log(1 + count[h_j, i] / tau) + lambda log p(i) + sum_m alpha_m cos(sum_j v_j
z_m(h_j), z_m(i)), where h_1 is the newest item of the history, w_j and v_j fall by a factor with
every step back and sum to 1 (a part of w is spread evenly), z_m are whitened vectors of modality m,
and p(i) is the share of item i in the training parts.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.parallel.sharding import lookup_rows
from mmesid_jax.parallel.variables import Frozen


class CountSettings(NamedTuple):
  """Numbers of the first two terms of the formula."""

  recency: float  # w falls by this factor with every step back
  tail: float  # share of w that is spread evenly over the history
  tau: float  # counts far below it add nearly nothing
  popularity: float  # lambda


class ContentSettings(NamedTuple):
  """Numbers of one modality in the third term."""

  recency: float  # v falls by this factor with every step back
  weight: float  # alpha


def recency_weights(
  history_QX: jax.Array, recency: jax.Array | float, tail: jax.Array | float = 0.0
) -> jax.Array:
  """Weights [Q, X] of past items, newest first, with sum 1, and 0 for padding.

  A share 1 - tail of the sum falls by the factor `recency` with every step back; the rest is even.
  """

  def normalize(weight_X):
    weight_QX = jnp.where(history_QX > 0, weight_X, 0)
    return weight_QX / jnp.maximum(weight_QX.sum(1, keepdims=True), 1e-30)

  age_X = jnp.arange(history_QX.shape[1])
  return (1 - tail) * normalize(recency**age_X) + tail * normalize(jnp.ones_like(age_X, float))


def transition_scores(
  history_QX: jax.Array,
  follower_IK: jax.Array,
  count_IK: jax.Array,
  *,
  recency: jax.Array | float,
  tail: jax.Array | float,
  tau: jax.Array | float,
) -> jax.Array:
  """The first term of the formula, float32 [Q, I]."""
  Q, rows = len(history_QX), len(follower_IK)
  weight_QX = recency_weights(history_QX, recency, tail)
  strength_QXK = jnp.log1p(lookup_rows(count_IK, history_QX) / tau) * weight_QX[..., None]
  follower_QXK = lookup_rows(follower_IK, history_QX)
  query_Q11 = jnp.arange(Q)[:, None, None]
  return jnp.zeros((Q, rows)).at[query_Q11, follower_QXK].add(strength_QXK)


def content_scores(
  history_QX: jax.Array, unit_IW: jax.Array, *, recency: jax.Array | float
) -> jax.Array:
  """One modality's cosine in the third term, float32 [Q, I]; unit_IW: unit vectors, row 0 zero."""
  weight_QX = recency_weights(history_QX, recency)
  query_QW = jnp.einsum("qx,qxw->qw", weight_QX, lookup_rows(unit_IW, history_QX))
  length_Q1 = jnp.linalg.norm(query_QW, axis=1, keepdims=True)
  return (query_QW / jnp.maximum(length_Q1, 1e-12)) @ unit_IW.T


class EvidenceModel(nnx.Module):
  """Ranks items by the first two terms of the formula; nothing of it is trained.

  Args:
    follower_IK, count_IK: `data.transitions.Transitions`.
    share_I: p(i) > 0, shares of the items in the training parts; row 0 is unused.
  """

  def __init__(
    self, follower_IK: jax.Array, count_IK: jax.Array, share_I: jax.Array, counts: CountSettings
  ):
    self.num_items = len(share_I) - 1
    self.follower_IK = Frozen(jnp.asarray(follower_IK))
    self.count_IK = Frozen(jnp.asarray(count_IK))
    self.log_share_I = Frozen(jnp.log(jnp.asarray(share_I)))
    self.counts = Frozen(jnp.asarray(counts, jnp.float32))
    self.unit_IW, self.contents = nnx.Dict(), nnx.Dict()

  def with_content(
    self, unit_IW: Mapping[str, jax.Array], contents: Mapping[str, ContentSettings]
  ) -> "EvidenceModel":
    """A model with the third term too, which shares this one's arrays.

    unit_IW: modality -> unit vectors float32 [I, W], row 0 zero.
    """
    new = nnx.merge(*nnx.split(self))
    new.unit_IW = nnx.Dict({m: Frozen(jnp.asarray(x)) for m, x in unit_IW.items()})
    new.contents = nnx.Dict({m: Frozen(jnp.asarray(x, jnp.float32)) for m, x in contents.items()})
    return new

  def catalogue(self) -> None:
    """Nothing is computed ahead."""

  def score_batch(self, batch: Batch, catalogue: None = None) -> jax.Array:
    """Scores [Q, I] of all items for the batch's targets; its layout has histories."""
    by_count = CountSettings(*self.counts[...])
    score_QI = transition_scores(
      batch.history_QX,
      self.follower_IK[...],
      self.count_IK[...],
      recency=by_count.recency,
      tail=by_count.tail,
      tau=by_count.tau,
    )
    score_QI += by_count.popularity * self.log_share_I[...]
    for m, unit_IW in self.unit_IW.items():
      by_content = ContentSettings(*self.contents[m][...])
      cosine_QI = content_scores(batch.history_QX, unit_IW[...], recency=by_content.recency)
      score_QI += by_content.weight * cosine_QI
    return score_QI
