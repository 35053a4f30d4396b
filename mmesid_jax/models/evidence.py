"""Untrained evidence for the next item: counted transitions, popularity and its trend, whether
people come back to an item, similar content.

score(i) = sum_j w_j log(1 + count[h_j, i] / tau) + lambda log p(i) + mu trend(i) + rho n(i)
+ nu new(i) + sum_m alpha_m cos(sum_j v_j z_m(h_j), z_m(i)), where h_1 is the newest item of the
history, w_j and v_j fall by a factor with every step back and sum to 1 (a part of w is spread
evenly), n(i) is how often i is in the history, z_m are whitened vectors of modality m, p(i) is the
share of item i in the training parts, and trend(i) the logarithm of how much larger its share is
near their ends.
The sums over j end at the NEWEST items; n(i) counts the whole history. new(i) is 1 for an item that
came after the counts. Nobody could buy it, so missing counts say little about it; nu makes up for
them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.catalogue_scores import Scorer
from mmesid_jax.parallel.sharding import constrain, gather_columns, lookup_rows
from mmesid_jax.parallel.variables import Frozen

NEWEST = 50  # past items that transitions and content look at


class CountSettings(NamedTuple):
  """Numbers of the first line of the formula."""

  recency: float  # w falls by this factor with every step back
  tail: float  # share of w that is spread evenly over the history
  tau: float  # counts far below it add nearly nothing
  popularity: float  # lambda
  trend: float  # mu
  repeats: float  # rho


class ContentSettings(NamedTuple):
  """Numbers of one modality in the second line."""

  recency: float  # v falls by this factor with every step back
  weight: float  # alpha


class EvidenceTables(NamedTuple):
  """Counts of the training parts, a row for each item; row 0 is padding."""

  follower_IK: jax.Array  # int32, of `data.transitions.Transitions`
  count_IK: jax.Array  # float32
  share_I: jax.Array  # p(i) > 0
  trend_I: jax.Array


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


def content_queries(
  history_QX: jax.Array, past_QXW: jax.Array, recency: jax.Array | float
) -> jax.Array:
  """Directions [Q, W] of the histories, unit vectors; their products with those of the items are
  the cosines of the last term. past_QXW: the unit vectors of the histories' items, 0 for padding.
  """
  weight_QX = recency_weights(history_QX, recency)
  query_QW = jnp.einsum("qx,qxw->qw", weight_QX, past_QXW)
  return query_QW / jnp.maximum(jnp.linalg.norm(query_QW, axis=1, keepdims=True), 1e-12)


class EvidenceModel(nnx.Module):
  """Ranks items by the formula; nothing of it is trained.

  Without `with_content` it has the first line alone.
  """

  def __init__(self, tables: EvidenceTables, counts: CountSettings):
    self.num_items = len(tables.share_I) - 1
    self.follower_IK = Frozen(jnp.asarray(tables.follower_IK))
    self.count_IK = Frozen(jnp.asarray(tables.count_IK))
    self.log_share_I = Frozen(jnp.log(jnp.asarray(tables.share_I)))
    self.trend_I = Frozen(jnp.asarray(tables.trend_I))
    self.is_new_I = Frozen(jnp.zeros(self.num_items + 1))  # 1 = added after the counts
    self.counts = Frozen(jnp.asarray(counts, jnp.float32))
    self.newness = Frozen(jnp.zeros(()))  # nu
    self.unit_IW, self.contents = nnx.Dict(), nnx.Dict()

  def with_content(
    self, unit_IW: Mapping[str, jax.Array], contents: Mapping[str, ContentSettings]
  ) -> "EvidenceModel":
    """A model with the last term too, which shares this one's arrays.

    unit_IW: modality -> unit vectors float32 [I, W], row 0 zero.
    """
    new = nnx.merge(*nnx.split(self))
    # in the order that nnx.merge gives them: that of `sources` is then always the same
    new.unit_IW = nnx.Dict({m: Frozen(jnp.asarray(x)) for m, x in sorted(unit_IW.items())})
    new.contents = nnx.Dict({m: Frozen(jnp.asarray(x, jnp.float32)) for m, x in contents.items()})
    return new

  def with_newness(self, newness: jax.Array | float) -> "EvidenceModel":
    """A model with this nu, which shares the rest."""
    new = nnx.merge(*nnx.split(self))
    new.newness = Frozen(jnp.asarray(newness, jnp.float32))
    return new

  def with_new_items(self, unit_EW: Mapping[str, np.ndarray], E: int) -> "EvidenceModel":
    """A model with E more items, of which only the content is known, after the last one.

    Nothing follows them and they follow nothing, their popularity is that of the rarest item, and
    they have no trend. unit_EW: modality -> unit vectors of the new items; a modality that is left
    out is as far from everything as a mean vector.
    """
    new = nnx.merge(*nnx.split(self))
    new.num_items += E

    def append(x: nnx.Variable, rows) -> Frozen:
      return Frozen(jnp.concatenate([x[...], jnp.asarray(rows, x[...].dtype)]))

    K = self.follower_IK.shape[1]
    new.follower_IK = append(self.follower_IK, jnp.zeros((E, K)))
    new.count_IK = append(self.count_IK, jnp.zeros((E, K)))
    new.log_share_I = append(self.log_share_I, jnp.full(E, self.log_share_I[1:].min()))
    new.trend_I = append(self.trend_I, jnp.zeros(E))
    new.is_new_I = append(self.is_new_I, jnp.ones(E))
    for m, x in self.unit_IW.items():
      rows_EW = unit_EW[m] if m in unit_EW else jnp.zeros((E, x.shape[1]))
      new.unit_IW[m] = append(x, rows_EW)
    return new

  def mask_as_new(self, new_I: jax.Array) -> "EvidenceModel":
    """A model that treats the items in new_I, bool [I], as `with_new_items` treats new ones. Of
    such an item in a history, only the content is read."""
    new = nnx.merge(*nnx.split(self))
    # tables may have rows that a mesh needs
    new_I = jnp.pad(jnp.asarray(new_I), (0, len(self.is_new_I[...]) - len(new_I)))
    rarest = self.log_share_I[1:].min()
    forgotten_IK = new_I[self.follower_IK[...]] | new_I[:, None]
    new.count_IK = Frozen(jnp.where(forgotten_IK, 0, self.count_IK[...]))
    new.log_share_I = Frozen(jnp.where(new_I, rarest, self.log_share_I[...]))
    new.trend_I = Frozen(jnp.where(new_I, 0, self.trend_I[...]))
    new.is_new_I = Frozen(jnp.maximum(self.is_new_I[...], new_I))
    return new

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of the terms, as reasons show them."""
    similar = (f"similar {m}" for m in self.unit_IW)
    return ("transitions", "popularity", "trend", "repeats", "new", *similar)

  def transitions(self, history_QX: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first term: items int32 [Q, E] that follow those of the histories, and what each adds,
    float32 [Q, E]. An item may come up several times."""
    by_count, history_QX = CountSettings(*self.counts[...]), history_QX[:, :NEWEST]
    weight_QX = recency_weights(history_QX, by_count.recency, by_count.tail)
    count_QXK = lookup_rows(self.count_IK[...], history_QX)
    strength_QXK = jnp.log1p(count_QXK / by_count.tau) * weight_QX[..., None]
    follower_QXK = lookup_rows(self.follower_IK[...], history_QX)
    Q = len(history_QX)
    return follower_QXK.reshape(Q, -1), strength_QXK.reshape(Q, -1)

  def evidence(self, history_QX: jax.Array) -> jax.Array:
    """How much is known about what follows these histories, [Q]: the first term, summed over all
    items."""
    return self.transitions(history_QX)[1].sum(1)

  def products(self, history_QX: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Name -> query [Q, V] and table [I, V], for the terms that every item has."""
    by_count, history_QX = CountSettings(*self.counts[...]), history_QX[:, :NEWEST]

    def of_item(weight, x_I):
      return jnp.full((len(history_QX), 1), weight), x_I[:, None]

    products = {
      "popularity": of_item(by_count.popularity, self.log_share_I[...]),
      "trend": of_item(by_count.trend, self.trend_I[...]),
      "new": of_item(self.newness[...], self.is_new_I[...]),
    }
    for m, unit_IW in self.unit_IW.items():
      by_content = ContentSettings(*self.contents[m][...])
      past_QXW = lookup_rows(unit_IW[...], history_QX)
      query_QW = content_queries(history_QX, past_QXW, by_content.recency)
      products[f"similar {m}"] = by_content.weight * query_QW, unit_IW[...]
    return products

  def transition_scores(self, history_QX: jax.Array) -> jax.Array:
    """The first term of all items, [Q, I]."""
    follower_QE, strength_QE = self.transitions(history_QX)
    none_QI = jnp.zeros((len(history_QX), len(self.log_share_I[...])))
    place_Q1 = jnp.arange(len(history_QX))[:, None]
    return constrain(none_QI.at[place_Q1, follower_QE].add(strength_QE), "targets", "items")

  def repeat_scores(self, history_QX: jax.Array) -> jax.Array:
    """rho n(i) of all items, [Q, I]."""
    none_QI = jnp.zeros((len(history_QX), len(self.log_share_I[...])))
    place_Q1 = jnp.arange(len(history_QX))[:, None]
    repeats_QX = jnp.where(history_QX > 0, CountSettings(*self.counts[...]).repeats, 0)
    return constrain(none_QI.at[place_Q1, history_QX].add(repeats_QX), "targets", "items")

  def scores(self, history_QX: jax.Array, transition_QI: jax.Array | None = None) -> jax.Array:
    """Scores [Q, I] of all items by the formula; transition_QI: `transition_scores`, where they
    are known."""
    if transition_QI is None:
      transition_QI = self.transition_scores(history_QX)
    score_QI = transition_QI + self.repeat_scores(history_QX)
    for query_QV, table_IV in self.products(history_QX).values():
      # With a barrier the product is a call of the library, also for one history; without, XLA for
      # CPUs makes it a part of the loop over the sum, which takes three times as long.
      score_QI += jax.lax.optimization_barrier(
        Scorer((query_QV,), (table_IV,), (None,)).score_all()
      )
    return constrain(score_QI, "targets", "items")

  def contributions(
    self, history_QX: jax.Array, item_QA: jax.Array, transition_QI: jax.Array | None = None
  ) -> jax.Array:
    """Summands [Q, A, O] of the scores of A items for each history, in the order of `sources`."""
    if transition_QI is None:
      transition_QI = self.transition_scores(history_QX)
    parts = {
      "transitions": gather_columns(transition_QI, item_QA),
      "repeats": gather_columns(self.repeat_scores(history_QX), item_QA),
    }
    for name, (query_QV, table_IV) in self.products(history_QX).items():
      parts[name] = jnp.einsum("qv,qav->qa", query_QV, lookup_rows(table_IV, item_QA))
    return jnp.stack([parts[name] for name in self.sources], axis=-1)

  def closest(self, history_QX: jax.Array, item_QA: jax.Array) -> jax.Array:
    """The largest cosine of an item's content and that of the NEWEST items of a history,
    [Q, A, M], a column for each modality; -1 without a history."""
    history_QX = history_QX[:, :NEWEST]

    def largest(unit_IW: jax.Array) -> jax.Array:
      past_QXW, item_QAW = lookup_rows(unit_IW, history_QX), lookup_rows(unit_IW, item_QA)
      cosine_QAX = jnp.einsum("qaw,qxw->qax", item_QAW, past_QXW)
      return jnp.where(history_QX[:, None] > 0, cosine_QAX, -1).max(2)

    none_QA0 = jnp.zeros((*item_QA.shape, 0))
    found = [largest(unit_IW[...])[..., None] for unit_IW in self.unit_IW.values()]
    return jnp.concatenate([none_QA0, *found], axis=-1)

  def catalogue(self) -> None:
    """Nothing is computed ahead."""

  def score_batch(self, batch: Batch, catalogue: None = None) -> jax.Array:
    """Scores [Q, I] of all items for the batch's targets; the batch has histories."""
    return self.scores(batch.history_QX)
