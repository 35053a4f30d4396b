"""Decodes semantic IDs over the trie of the catalogue: the best by a beam, or all items' scores.

Both run on the device as one program; only codes that some item has are ever tried.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmesid_jax.quantize.id_trie import IdTrie
from mmesid_jax.quantize.item_ids import NO_CODE

# step(level, state, parent, code) -> (log-probabilities [Q, B, C] of the codes of a level, state).
# parent, code: int32 [Q, B], the place among the beams of the level before that a beam continues,
# and the code that it has added; None on level 0, where there is one beam.
Step = Callable[[int, Any, jax.Array | None, jax.Array | None], tuple[jax.Array, Any]]


class Decoded(NamedTuple):
  """The items that a beam search ends with, best first."""

  item_QB: jax.Array  # int32; 0 where there are fewer items than beams
  score_QB: jax.Array  # log p(ID); -inf there


def beam_search(
  trie: IdTrie, step: Step, state: Any, beams: int, left_out_QX: jax.Array | None = None
) -> Decoded:
  """The items with the highest log p(ID), as far as a beam of this width finds them.

  Of equal scores the lower item comes first. With as many beams as items it is exact.

  left_out_QX: items that are no answers; they are left out on the last level only.
  """
  node_QB = score_QB = parent_QB = code_QB = None
  for level, (first_child, codes, most) in enumerate(
    zip(trie.first_child, trie.code, trie.most_children, strict=True)
  ):
    log_p_QBC, state = step(level, state, parent_QB, code_QB)
    Q, B, _ = log_p_QBC.shape
    if level == 0:
      node_QB, score_QB = jnp.zeros((Q, 1), jnp.int32), jnp.zeros((Q, 1))
    first_QB = first_child[node_QB]
    child_QBN = first_QB[..., None] + jnp.arange(most, dtype=jnp.int32)
    is_child_QBN = child_QBN < first_child[node_QB + 1][..., None]
    child_QBN = jnp.where(is_child_QBN, child_QBN, 0)
    code_QBN = codes[child_QBN]
    added_QBN = jnp.take_along_axis(log_p_QBC, jnp.maximum(code_QBN, 0), axis=2)
    total_QBN = score_QB[..., None] + jnp.where(code_QBN == NO_CODE, 0, added_QBN)
    total_QBN = jnp.where(is_child_QBN, total_QBN, -jnp.inf)
    if level == trie.levels - 1 and left_out_QX is not None:
      item_QBN = trie.item[child_QBN]
      left_out_QBN = (item_QBN[..., None] == left_out_QX[:, None, None]).any(-1)
      total_QBN = jnp.where(left_out_QBN, -jnp.inf, total_QBN)
    score_QB, place_QB = jax.lax.top_k(total_QBN.reshape(Q, -1), min(beams, B * most))
    parent_QB = (place_QB // most).astype(jnp.int32)
    node_QB, code_QB = (
      jnp.take_along_axis(x.reshape(Q, -1), place_QB, axis=1) for x in (child_QBN, code_QBN)
    )
  item_QB = jnp.where(jnp.isneginf(score_QB), 0, trie.item[node_QB])
  order_QB = jnp.lexsort((item_QB, -score_QB), axis=1)
  return Decoded(*(jnp.take_along_axis(x, order_QB, axis=1) for x in (item_QB, score_QB)))


def exact_scores(trie: IdTrie, step: Step, state: Any, num_rows: int) -> jax.Array:
  """log p(ID) of every item, [Q, num_rows], column i = item i; -inf for those not in the trie.

  Every prefix is computed once, however many items have it.
  """
  score_QB = parent_QB = code_QB = None
  for level, (first_child, codes) in enumerate(zip(trie.first_child, trie.code, strict=True)):
    log_p_QBC, state = step(level, state, parent_QB, code_QB)
    Q = len(log_p_QBC)
    if level == 0:
      score_QB = jnp.zeros((Q, 1))
    children = jnp.diff(first_child)
    parent_B = jnp.repeat(jnp.arange(len(children)), children, total_repeat_length=len(codes))
    added_QB = log_p_QBC[:, parent_B, jnp.maximum(codes, 0)]
    score_QB = score_QB[:, parent_B] + jnp.where(codes == NO_CODE, 0, added_QB)
    parent_QB, code_QB = (jnp.broadcast_to(x_B, (Q, len(codes))) for x_B in (parent_B, codes))
  return jnp.full((Q, num_rows), -jnp.inf).at[:, trie.item].set(score_QB)
