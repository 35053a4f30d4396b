"""Scores of a catalogue as sums of products, taken of all items, of a chunk, or of chosen ones."""

import dataclasses

import jax
import jax.numpy as jnp

from mmesid_jax.parallel.sharding import constrain, lookup


def candidates(columns: int, num_items: int) -> jax.Array:
  """bool [columns]: items 1 .. num_items. Column 0 is padding, and behind the items is what fills
  up the parts that a mesh cuts."""
  item_I = jnp.arange(columns)
  return (item_I > 0) & (item_I <= num_items)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scorer:
  """score[q, i] = sum_s weight_IS[i, s] * (query[s][q] . table[s][i] + offset[s][q])

  Of every source s: query [Q, V_s], table [I, V_s], offset [Q] or None, where it is 0; weight_IS
  None: every source weighs 1. Item 0 is padding, rows behind num_items fill up what a mesh cuts
  into equal parts (0 = there are none): both have a score like any other here.
  """

  query: tuple[jax.Array, ...]
  table: tuple[jax.Array, ...]
  offset: tuple[jax.Array | None, ...] = (None,)
  weight_IS: jax.Array | None = None
  num_items: int = dataclasses.field(default=0, metadata={"static": True})

  @property
  def items(self) -> int:
    """Rows of the tables, padding among them."""
    return len(self.table[0])

  @property
  def last(self) -> int:
    """The last item that may be ranked."""
    return self.num_items or self.items - 1

  def all(self) -> jax.Array:
    """[Q, I]."""
    query = tuple(constrain(query_QV, "targets", None) for query_QV in self.query)
    scorer = dataclasses.replace(self, query=query)
    return constrain(scorer.of((self.table, self.weight_IS)), "targets", "items")

  def chosen(self, item_N: jax.Array) -> jax.Array:
    """[Q, N], of the same items for every query."""
    return self.of(jax.tree.map(lambda x: lookup(x, item_N), (self.table, self.weight_IS)))

  def own(self, item_Q: jax.Array) -> jax.Array:
    """[Q], of one item for every query."""
    total_Q = jnp.zeros(len(item_Q))
    for s, (query_QV, table_IV, offset_Q) in enumerate(self._sources()):
      part_Q = (query_QV * lookup(table_IV, item_Q)).sum(1)
      part_Q = part_Q if offset_Q is None else part_Q + offset_Q
      total_Q += part_Q if self.weight_IS is None else part_Q * lookup(self.weight_IS, item_Q)[:, s]
    return total_Q

  def of(self, rows) -> jax.Array:
    """[Q, N] of rows = (tables, weights): N rows of each, as a chunk of `chunks` has them."""
    tables, weight_NS = rows
    total_QN = 0.0
    for s, (query_QV, _, offset_Q) in enumerate(self._sources()):
      part_QN = query_QV @ tables[s].T
      part_QN = part_QN if offset_Q is None else part_QN + offset_Q[:, None]
      total_QN += part_QN if weight_NS is None else part_QN * weight_NS[:, s]
    return total_QN

  def chunks(self, size: int):
    """Tables and weights cut into pieces of `size` rows, stacked; zeros fill the last one."""

    def cut(x):
      x = jnp.pad(x, ((0, -len(x) % size), (0, 0)))
      return x.reshape(-1, size, x.shape[1])

    return jax.tree.map(cut, (self.table, self.weight_IS))

  def _sources(self):
    return zip(self.query, self.table, self.offset, strict=True)
