"""The recommender as the step of a beam search: one token a beam, after a history read once."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.generate.beam_search import (
  Beams,
  Decoded,
  Step,
  beam_search,
  best_items,
  exact_scores,
)
from mmesid_jax.models.llama import Prefix
from mmesid_jax.models.packed_rows import last_read, read_targets, visibility_mask
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.sharding import constrain, shard_count

# Beams that lead to one item need no model. The smallest of these shares that holds the others is
# computed, each by a program of its own; where there are fewer beams than FEW, all are.
PARTS, FEW = (0.25, 0.5, 0.75, 1.0), 20


class Reading(NamedTuple):
  """Histories that were read, and how codes are added to them."""

  h_QD: jax.Array  # the states of `RecommenderModel.hidden`
  step: Step
  state: Any  # that the search begins with


def read_histories(model: RecommenderModel, batch: Batch) -> Reading:
  """Reads the batch once.

  The batch has no code tokens: the search writes them. Of all layers, keys and values of the rows
  are held, and those of the beams' own tokens, which are fewer than the levels.
  """
  head, P = model.generate, model.prompt_length
  codebook = head.codebook(model.items)
  x_GJD, seen = model.backbone.prefill(
    model.prompt_PD[...], model.tokens(batch), batch.position_RT, visibility_mask(batch, P)
  )
  h_QD = _divide(read_targets(x_GJD, P, batch.read_Q) * model.state_scale)
  row_Q, mask_QY, position_QY = last_read(batch, P)
  prefix = Prefix(seen, row_Q, mask_QY, position_QY, P)
  read_position_Q = batch.position_RT.reshape(-1)[jnp.maximum(batch.read_Q - 1, 0)]
  next_Q = jnp.where(batch.read_Q > 0, read_position_Q + 1, 0)
  c = model.backbone.config
  none = jnp.zeros((c.layers, len(next_Q), 1, 0, c.K, c.H), seen[0].dtype)

  def step(level: int, branch, beams: Beams | None):
    if beams is None:
      return head.scores(codebook, 0, h_QD)[:, None], branch
    Z = beams.parent_QZ.shape[1]

    def scores_of_first(number: int, branch):
      parent_QZ, code_QZ = beams.parent_QZ[:, :number], beams.code_QZ[:, :number]
      branch = tuple(_of_parents(x, parent_QZ) for x in branch)
      x_QZD = head.tokens(codebook, level - 1, code_QZ) * model.token_scale
      h_QZD, branch = model.backbone.extend(_divide(x_QZD), next_Q + level - 1, prefix, branch)
      score_QZC = head.scores(codebook, level, h_QZD * model.state_scale)
      more = Z - number
      return _pad(score_QZC, 1, more), tuple(_pad(x, 2, more) for x in branch)

    if beams.open is None or Z < FEW:
      return scores_of_first(Z, branch)
    sizes = [math.ceil(Z * part) for part in PARTS]
    smallest = jnp.searchsorted(jnp.array(sizes), beams.open)
    return jax.lax.switch(smallest, [partial(scores_of_first, z) for z in sizes], branch)

  return Reading(h_QD, step, (none, none))


def _divide(x: jax.Array) -> jax.Array:
  """The array [Q, ...] divided over the devices by targets, where they are evenly many."""
  even = len(x) % shard_count("targets") == 0
  return constrain(x, "targets", *(None,) * (x.ndim - 1)) if even else x


def _pad(x: jax.Array, axis: int, more: int) -> jax.Array:
  """x with zeros at the end of an axis."""
  return jnp.pad(x, [(0, more if n == axis else 0) for n in range(x.ndim)])


def _of_parents(x: jax.Array, parent_QZ: jax.Array) -> jax.Array:
  """Keys or values of the beams [layers, Q, Z, ...] that the next level continues, in its order."""
  return jax.vmap(lambda of_query, parent_Z: of_query[:, parent_Z], (1, 0), 1)(x, parent_QZ)


def generate_items(
  model: RecommenderModel, batch: Batch, beams: int, excluded_QX: jax.Array | None = None
) -> Decoded:
  """As many of the best items for the batch's targets as there are beams."""
  trie, (_, step, state) = model.generate.trie, read_histories(model, batch)
  return best_items(trie, beam_search(trie, step, state, beams), beams, excluded_QX)


def score_all_items(model: RecommenderModel, batch: Batch) -> jax.Array:
  """`exact_scores` for the batch's targets, [Q, I]."""
  trie, (_, step, state) = model.generate.trie, read_histories(model, batch)
  return exact_scores(trie, step, state, model.num_items + 1)
