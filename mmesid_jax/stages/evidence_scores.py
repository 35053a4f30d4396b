"""Ranks of users under many settings of the baselines that count, as the search for them asks.

The scores are those of `models.evidence.EvidenceModel`, in less time. Tables go to the device once.
Settings that are asked for together compute once what they share. And the counted term adds only
the followers that an item has, in most cases far fewer than the table has places for.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmesid_jax.data.packing import Batch
from mmesid_jax.data.transitions import Transitions
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.models.evidence import NEWEST, content_queries, recency_weights
from mmesid_jax.parallel.mesh import is_partitioned
from mmesid_jax.parallel.sharding import device_put_sharded

FOLLOWERS = 2**16  # that are added at a time
KEPT_TABLES = 2  # of transitions, on the device

Settings = Mapping[str, Any]


class FollowerTable(NamedTuple):
  """Transitions on the device; only the first places of a row are used."""

  follower_IK: jax.Array
  count_IK: jax.Array
  used_I: jax.Array  # int32, places of each row that are used


class SettingsRanks:
  """Ranks of an evaluator's targets under settings.

  Args:
    priors: share_I and trend_I, as in EvidenceTables.
    transitions: (window, decay) -> Transitions.
    unit_vectors: (modality, width) -> unit vectors float32 [I, W], row 0 zero.
    modalities: those whose content is compared.
  """

  def __init__(
    self,
    evaluator: Evaluator,
    priors: tuple[np.ndarray, np.ndarray],
    transitions: Callable[[int, float], Transitions],
    unit_vectors: Callable[[str, int], np.ndarray],
    modalities: Sequence[str],
  ):
    self._evaluator, self._modalities = evaluator, modalities
    share_I, trend_I = priors
    self._priors = _put(jnp.log(jnp.asarray(share_I))), _put(trend_I)

    @functools.lru_cache(maxsize=KEPT_TABLES)
    def table(window: int, decay: float) -> FollowerTable:
      found = transitions(window, decay)
      used_I = (found.count_IK > 0).sum(1, dtype=np.int32)
      return FollowerTable(*map(_put, (found.follower_IK, found.count_IK, used_I)))

    @functools.lru_cache(maxsize=2 * len(modalities))
    def directions(modality: str, width: int) -> jax.Array:
      return _put(unit_vectors(modality, width))

    self._table, self._directions = table, directions

  def __call__(self, several: Sequence[Settings]) -> list[dict[str, np.ndarray]]:
    """For each of the settings, protocol -> int32 [U]."""
    return self._evaluator.shared_ranks(lambda batch: self._scores(batch, several), len(several))

  def _scores(self, batch: Batch, several: Sequence[Settings]) -> Iterator[jax.Array]:
    """Scores [Q, I] under each of the settings; of every term the last one is kept."""

    newest_QX = batch.history_QX[:, :NEWEST]

    @functools.lru_cache(maxsize=1)
    def counted(window: int, decay: float, numbers: tuple) -> jax.Array:
      return counted_scores(newest_QX, self._table(window, decay), *numbers)

    @functools.lru_cache(maxsize=len(self._modalities))
    def cosine(modality: str, width: int, recency: float) -> jax.Array:
      return _content_scores(newest_QX, self._directions(modality, width), recency)

    for s in several:
      numbers = s["recency"], s["tail"], s["tau"]
      counted_QI = counted(s["window"], s["distance_decay"], numbers)
      contents = [
        (cosine(m, s[f"{m}.width"], s[f"{m}.recency"]), s[f"{m}.weight"]) for m in self._modalities
      ]
      weights = s["popularity"], s["trend"], s["repeats"]
      yield _sum_terms(batch.history_QX, counted_QI, self._priors, weights, contents)


@jax.jit
def counted_scores(
  history_QX: jax.Array,
  table: FollowerTable,
  recency: jax.Array | float,
  tail: jax.Array | float,
  tau: jax.Array | float,
) -> jax.Array:
  """The first term of `models.evidence`, float32 [Q, I], in time of the places that are used.

  The followers of all past items of all targets are numbered through, and added in that order.
  """
  Q, X = history_QX.shape
  weight_QX = recency_weights(history_QX, recency, tail)
  used_QX = table.used_I[history_QX]
  stop_QX = jnp.cumsum(used_QX).reshape(Q, X)  # the first number after those of a past item
  first_QX, total = stop_QX - used_QX, stop_QX[-1, -1]

  def add(chunk: jax.Array, score_QI: jax.Array) -> jax.Array:
    start = chunk * FOLLOWERS
    number_E = start + jnp.arange(FOLLOWERS)
    # a follower's past item is the number of past items whose followers end at or before it
    stop_in_chunk = jnp.clip(stop_QX.reshape(-1) - start, 0, FOLLOWERS)
    ends_E = jnp.zeros(FOLLOWERS, jnp.int32).at[stop_in_chunk].add(1, mode="drop")
    place_E = jnp.minimum(jnp.cumsum(ends_E), Q * X - 1)
    q_E, x_E = place_E // X, place_E % X
    item_E, k_E = history_QX[q_E, x_E], number_E - first_QX[q_E, x_E]
    strength_E = jnp.log1p(table.count_IK[item_E, k_E] / tau) * weight_QX[q_E, x_E]
    exists_E = number_E < total
    follower_E = jnp.where(exists_E, table.follower_IK[item_E, k_E], 0)
    return score_QI.at[q_E, follower_E].add(jnp.where(exists_E, strength_E, 0))

  chunks = (total + FOLLOWERS - 1) // FOLLOWERS
  return jax.lax.fori_loop(0, chunks, add, jnp.zeros((Q, len(table.used_I))))


@jax.jit
def _content_scores(
  history_QX: jax.Array, unit_IW: jax.Array, recency: jax.Array | float
) -> jax.Array:
  return content_queries(history_QX, unit_IW[history_QX], recency) @ unit_IW.T


@jax.jit
def _sum_terms(
  history_QX: jax.Array,
  counted_QI: jax.Array,
  priors: tuple[jax.Array, jax.Array],
  weights: tuple[float, float, float],
  contents: Sequence[tuple[jax.Array, jax.Array | float]],
) -> jax.Array:
  """The formula from its terms; contents: cosine [Q, I] and weight of each modality."""
  (log_share_I, trend_I), (popularity, trend, repeats) = priors, weights
  score_QI = counted_QI + (popularity * log_share_I + trend * trend_I)
  for cosine_QI, weight in contents:
    score_QI += weight * cosine_QI
  place_Q1 = jnp.arange(len(history_QX))[:, None]
  return score_QI.at[place_Q1, history_QX].add(jnp.where(history_QX > 0, repeats, 0))


def _put(x: np.ndarray | jax.Array) -> jax.Array:
  """The array on the device, or whole on every device of the mesh in use."""
  return device_put_sharded(x, (None,) * x.ndim) if is_partitioned() else jnp.asarray(x)
