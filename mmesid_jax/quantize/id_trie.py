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


def build_trie(code_IK: np.ndarray, item_E: np.ndarray | None = None) -> IdTrie:
  """The trie of the items' IDs; row 0 is padding and not in it.

  item_E: the items that are in it; None = all. Raises ValueError where two of them share an ID.
  """
  item_E = np.arange(1, len(code_IK)) if item_E is None else np.asarray(item_E)
  code_EK = code_IK[item_E]
  order = np.lexsort(code_EK.T[::-1])
  code_EK, item_E = code_EK[order], item_E[order]
  items, levels = code_EK.shape
  node_E = np.zeros(items, np.int64)  # of the level, by item
  starts_E = np.arange(items) == 0  # where a node of the level begins
  first_child, codes = [], []
  for level in range(levels):
    column_E = code_EK[:, level]
    starts_E = starts_E | np.append(True, column_E[1:] != column_E[:-1])[:items]
    parent = node_E[starts_E]
    first_child.append(np.searchsorted(parent, np.arange(node_E[-1] + 2)).astype(np.int32))
    codes.append(column_E[starts_E].astype(np.int32))
    node_E = np.cumsum(starts_E) - 1
  if not starts_E.all():
    same = int(np.flatnonzero(~starts_E)[0])
    raise ValueError(f"items {item_E[same - 1]} and {item_E[same]} have the same ID")
  most = tuple(int(np.diff(first).max()) for first in first_child)
  return IdTrie(tuple(first_child), tuple(codes), item_E.astype(np.int32), most)
