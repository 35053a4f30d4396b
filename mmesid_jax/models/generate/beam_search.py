"""Decodes semantic IDs over the trie of the catalogue: the best by a beam, or all items' scores.

Both run on the device as one program; only codes that some item has are ever tried.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmesid_jax.parallel.sharding import lookup_rows
from mmesid_jax.quantize.id_trie import IdTrie


class Beams(NamedTuple):
  """The prefixes that a level of a search goes on from, as a step needs them."""

  parent_QZ: jax.Array  # int32, the place of the prefix that it continues, on the level before
  code_QZ: jax.Array  # int32, the code that was added
  open: jax.Array | None  # int32, at most this many, the first, have more than one item; None = all


# step(level, state, beams) -> (scores [Q, Z, C] of the codes of a level, state); beams is None on
# level 0, where there is one prefix. Scores after the `open` first prefixes may be anything.
Step = Callable[[int, Any, Beams | None], tuple[jax.Array, Any]]


class Leaves(NamedTuple):
  """The items that the last beams of a search lead to, each at most once."""

  node_QZE: jax.Array  # int32, nodes of the last level; of every beam its children, then others
  score_QZE: jax.Array  # log p(ID); -inf for the others
  first_QZ: jax.Array  # the first child


class Decoded(NamedTuple):
  """The items that a search ends with, best first."""

  item_QA: jax.Array  # int32; 0 where there are fewer items than asked for
  score_QA: jax.Array  # log p(ID); -inf there


def beam_search(trie: IdTrie, step: Step, state: Any, beams: int) -> Leaves:
  """The items that follow the `beams` best prefixes; on every level but the last the best are kept.

  With as many beams as items nothing is lost. Where a prefix has one item, the codes that follow
  have the probability 1, and no scores are needed; such prefixes come last.
  """
  node_QZ = score_QZ = kept = None
  for level in range(trie.levels):
    score_QZC, state = step(level, state, kept)
    Q, Z, _ = score_QZC.shape
    if level == 0:
      node_QZ, score_QZ = jnp.zeros((Q, 1), jnp.int32), jnp.zeros((Q, 1))
    children = trie.children(level, node_QZ, score_QZC)
    total_QZE = score_QZ[..., None] + children.log_p
    if level == trie.levels - 1:
      break
    E = total_QZE.shape[2]
    _, place_QZ = jax.lax.top_k(total_QZE.reshape(Q, -1), min(beams, Z * E))
    node_QZ, score_QZ = _take(children.node, place_QZ), _take(total_QZE, place_QZ)
    is_open_QZ = ~trie.leads_to_one_item(level + 1, node_QZ) & jnp.isfinite(score_QZ)
    order_QZ = jnp.argsort(~is_open_QZ, axis=1, stable=True)
    place_QZ, node_QZ, score_QZ = (_take(x, order_QZ) for x in (place_QZ, node_QZ, score_QZ))
    parent_QZ = (place_QZ // E).astype(jnp.int32)
    kept = Beams(parent_QZ, _take(children.code, place_QZ), is_open_QZ.sum(1).max())
  return Leaves(children.node, total_QZE, children.first)


def _take(x: jax.Array, place_QZ: jax.Array) -> jax.Array:
  """The values of x [Q, ...] at places of its flattened rows."""
  return jnp.take_along_axis(x.reshape(len(x), -1), place_QZ, axis=1)


def best_items(
  trie: IdTrie, leaves: Leaves, most: int, excluded_QX: jax.Array | None = None
) -> Decoded:
  """The `most` best of the items that a search found; of equal scores the lower item first, if both
  are among them.

  excluded_QX: items that are left out; 0 is none.
  """
  score_QZE = leaves.score_QZE
  Q, Z, E = score_QZE.shape
  if excluded_QX is not None:
    leaf_QX = lookup_rows(trie.path, excluded_QX)[..., -1]
    place_QZX = leaf_QX[:, None] - leaves.first_QZ[..., None]
    is_there_QZX = (place_QZX >= 0) & (place_QZX < E) & (leaf_QX >= 0)[:, None]
    place_QZX = jnp.where(is_there_QZX, place_QZX, E)  # outside, so dropped
    beam = jnp.arange(Q)[:, None, None], jnp.arange(Z)[None, :, None]
    # Where a beam has fewer than E children, the place may be past them: that is -inf already.
    score_QZE = score_QZE.at[*beam, place_QZX].set(-jnp.inf, mode="drop")
  score_QA, place_QA = jax.lax.top_k(score_QZE.reshape(Q, -1), min(most, Z * E))
  node_QA = _take(leaves.node_QZE, place_QA)
  item_QA = jnp.where(jnp.isneginf(score_QA), 0, trie.item[node_QA])
  order_QA = jnp.lexsort((item_QA, -score_QA), axis=1)
  return Decoded(*(jnp.take_along_axis(x, order_QA, axis=1) for x in (item_QA, score_QA)))


def exact_scores(trie: IdTrie, step: Step, state: Any, num_rows: int) -> jax.Array:
  """log p(ID) of every item, [Q, num_rows], column i = item i; -inf for those not in the trie.

  Every prefix is computed once, however many items have it, and all at once: this takes memory in
  proportion to queries times items, and is meant for some hundred thousand of their pairs.
  """
  score_QE = every = None
  for level, (first_child, codes) in enumerate(zip(trie.first_child, trie.code, strict=True)):
    score_QZC, state = step(level, state, every)
    Q, parents = len(score_QZC), len(first_child) - 1
    if level == 0:
      score_QE = jnp.zeros((Q, 1))
    parent_E = jnp.repeat(
      jnp.arange(parents), jnp.diff(first_child), total_repeat_length=len(codes)
    )
    added_QE = score_QZC[:, parent_E, jnp.maximum(codes, 0)]
    log_p_QE = added_QE - _log_sums(added_QE, parent_E, parents)[:, parent_E]
    score_QE = score_QE[:, parent_E] + log_p_QE
    parent_QE, code_QE = (jnp.broadcast_to(x_E, (Q, len(codes))) for x_E in (parent_E, codes))
    every = Beams(parent_QE, code_QE, None)
  return jnp.full((Q, num_rows), -jnp.inf).at[:, trie.item].set(score_QE)


def _log_sums(score_QE: jax.Array, parent_E: jax.Array, parents: int) -> jax.Array:
  """log sum exp of the scores of every parent's children, [Q, parents]; parent_E increases."""
  options = {"num_segments": parents, "indices_are_sorted": True}
  most = jax.ops.segment_max(score_QE.T, parent_E, **options)
  sums = jax.ops.segment_sum(jnp.exp(score_QE.T - most[parent_E]), parent_E, **options)
  return (most + jnp.log(sums)).T
