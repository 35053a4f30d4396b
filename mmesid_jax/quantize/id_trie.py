"""A trie of the catalogue's semantic IDs as flat arrays: which codes may follow which."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmesid_jax.quantize.item_ids import NO_CODE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IdTrie:
  """Nodes are numbered from 0 on every level, in the order of their codes; level 0 is the root.

  Node n of level l has the children first_child[l][n] .. first_child[l][n + 1] - 1 of level l + 1,
  and code[l][c] leads to child c. The nodes of the last level are items. All int32.
  """

  first_child: tuple[jax.Array, ...]  # per level but the last, [nodes of the level + 1]
  code: tuple[jax.Array, ...]  # per level but the first, [nodes of the level]
  item: jax.Array  # of the nodes of the last level
  path: jax.Array  # [I, levels + 1] nodes from the root to the item; -1 for rows that have none
  most_children: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  @property
  def levels(self) -> int:
    """Number of codes of an ID."""
    return len(self.code)

  @property
  def nodes(self) -> tuple[int, ...]:
    """Number of nodes of every level; the first is 1, the last the number of items."""
    return (1, *(len(code) for code in self.code))

  @property
  def nbytes(self) -> int:
    """Bytes of the arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(self))

  def children(self, level: int, node: jax.Array, score: jax.Array) -> "Children":
    """The children of nodes [...] of a level, from the scores [..., C] of all codes there."""
    first_child = self.first_child[level]
    first = first_child[node]
    child = first[..., None] + jnp.arange(self.most_children[level], dtype=jnp.int32)
    is_child = child < first_child[node + 1][..., None]
    child = jnp.where(is_child, child, 0)
    code = jnp.maximum(self.code[level][child], 0)  # no number: an only child, so any score will do
    log_p = jax.nn.log_softmax(jnp.take_along_axis(score, code, axis=-1), where=is_child)
    return Children(first, child, code, jnp.where(is_child, log_p, -jnp.inf))

  def leads_to_one_item(self, level: int, node: jax.Array) -> jax.Array:
    """Bool [...], whether one item alone has the codes that lead to the nodes [...] of a level."""
    first, stop = node, node + 1
    for first_child in self.first_child[level:]:
      first, stop = first_child[first], first_child[stop]
    return stop - first == 1


class Children(NamedTuple):
  """The children of nodes [...], in as many places E as the most have."""

  first: jax.Array  # [...], the first child
  node: jax.Array  # [..., E]; 0 in places that are not used
  code: jax.Array  # [..., E], that leads to it; 0 where an item has no number
  log_p: jax.Array  # [..., E], by a softmax over the node's children; -inf in places not used


def build_trie(id_IL: np.ndarray, item_E: np.ndarray | None = None) -> IdTrie:
  """The trie of the items' IDs, without padding, row 0, and without items that have no codes.

  item_E: the items that are in it; None = all. Items that share an ID are leaves side by side.
  Raises ValueError where none of the items has codes.
  """
  item_E = np.arange(1, len(id_IL)) if item_E is None else np.asarray(item_E)
  item_E = item_E[id_IL[item_E, 0] != NO_CODE]
  if not len(item_E):
    raise ValueError("none of the items has codes")
  id_EL = id_IL[item_E]
  order = np.lexsort(id_EL.T[::-1])
  id_EL, item_E = id_EL[order], item_E[order]
  items, levels = id_EL.shape
  node_E = np.zeros(items, np.int64)  # of the level, by item
  starts_E = np.arange(items) == 0  # where a node of the level begins
  path = np.full((len(id_IL), levels + 1), -1, np.int32)
  path[item_E, 0] = 0
  first_child, codes = [], []
  for level in range(levels):
    column_E = id_EL[:, level]
    is_leaf = level == levels - 1
    starts_E = starts_E | np.append(True, column_E[1:] != column_E[:-1]) | is_leaf
    parent = node_E[starts_E]
    first_child.append(np.searchsorted(parent, np.arange(node_E[-1] + 2)).astype(np.int32))
    codes.append(column_E[starts_E].astype(np.int32))
    node_E = np.cumsum(starts_E) - 1
    path[item_E, level + 1] = node_E
  most = tuple(int(np.diff(first).max()) for first in first_child)
  return IdTrie(tuple(first_child), tuple(codes), item_E.astype(np.int32), path, most)
