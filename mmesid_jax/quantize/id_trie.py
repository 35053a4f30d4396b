"""A trie of the catalogue's semantic IDs as flat arrays: which codes may follow which."""

import dataclasses

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IdTrie:
  """Nodes are numbered from 0 on every level, in the order of their codes; level 0 is the root.

  Node n of level k has the children first_child[k][n] .. first_child[k][n + 1] - 1 of level k + 1,
  and code[k][c] leads to child c. The nodes of the last level are items. All int32.
  """

  first_child: tuple[jax.Array, ...]  # per level but the last, [nodes of the level + 1]
  code: tuple[jax.Array, ...]  # per level but the first, [nodes of the level]
  item: jax.Array  # of the nodes of the last level
  leaf: jax.Array  # by item: its node on the last level; -1 for padding and items that have none
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


def build_trie(id_IL: np.ndarray, item_E: np.ndarray | None = None) -> IdTrie:
  """The trie of the items' IDs; row 0 is padding and not in it.

  item_E: the items that are in it, one at least; None = all. Items that share an ID are leaves side
  by side.
  """
  item_E = np.arange(1, len(id_IL)) if item_E is None else np.asarray(item_E)
  id_EL = id_IL[item_E]
  order = np.lexsort(id_EL.T[::-1])
  id_EL, item_E = id_EL[order], item_E[order]
  items, levels = id_EL.shape
  node_E = np.zeros(items, np.int64)  # of the level, by item
  starts_E = np.arange(items) == 0  # where a node of the level begins
  first_child, codes = [], []
  for level in range(levels):
    column_E = id_EL[:, level]
    is_leaf = level == levels - 1
    starts_E = starts_E | np.append(True, column_E[1:] != column_E[:-1]) | is_leaf
    parent = node_E[starts_E]
    first_child.append(np.searchsorted(parent, np.arange(node_E[-1] + 2)).astype(np.int32))
    codes.append(column_E[starts_E].astype(np.int32))
    node_E = np.cumsum(starts_E) - 1
  most = tuple(int(np.diff(first).max()) for first in first_child)
  leaf_I = np.full(len(id_IL), -1, np.int32)
  leaf_I[item_E] = np.arange(items)
  return IdTrie(tuple(first_child), tuple(codes), item_E.astype(np.int32), leaf_I, most)
