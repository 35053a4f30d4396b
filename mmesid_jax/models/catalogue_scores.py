"""Scores of a catalogue as sums of products, computed of all items, of a chunk, or of some."""

import dataclasses

import jax
import jax.numpy as jnp

from mmesid_jax.data.packing import Batch
from mmesid_jax.parallel.sharding import constrain, lookup_rows


class ProductScores:
  """A model whose scores are products of its hidden states and one vector per item; a mixin.

  It has hidden(batch) -> [Q, D] and item_vectors() -> [I, D].
  """

  def catalogue(self) -> jax.Array:
    """The part of `score_batch` that is equal for all batches, [I, D]."""
    return self.item_vectors()

  def score_states(self, h_QD: jax.Array, batch: Batch, catalogue: jax.Array) -> jax.Array:
    """Scores [Q, I] of all items from hidden(batch); of the batch nothing else is read."""
    return Scorer((h_QD,), (catalogue,)).score_all()

  def score_batch(self, batch: Batch, catalogue: jax.Array) -> jax.Array:
    """Scores [Q, I] of all items for the batch's targets."""
    return self.score_states(self.hidden(batch), batch, catalogue)

  def static_table(self) -> jax.Array:
    """Vectors [I, V] of the items; their products with `static_query` are the scores."""
    return self.item_vectors()

  def static_query(self, h_QD: jax.Array, batch: Batch) -> jax.Array:
    """Vectors [Q, V] of the histories, from hidden(batch)."""
    return h_QD


def candidate_mask(columns: int, num_items: int) -> jax.Array:
  """Bool [columns], True for items 1 .. num_items.

  Column 0 is padding. Columns after the items are rows that a mesh needs for equal parts.
  """
  item_I = jnp.arange(columns)
  return (item_I > 0) & (item_I <= num_items)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scorer:
  """score[q, i] = sum_o weight_IO[i, o] * (query[o][q] . table[o][i] + offset[o][q])

  Scores are computed of all rows of the tables: also of row 0, which is padding, and of rows after
  num_items. `candidate_mask` says which are items.

  Args:
    query: per origin o of a score, [Q, V_o].
    table: per origin, [I, V_o].
    offset: per origin, [Q], or None for zeros.
    weight_IO: None = all ones.
    num_items: number of items without padding; 0 = all rows but the first.
  """

  query: tuple[jax.Array, ...]
  table: tuple[jax.Array, ...]
  offset: tuple[jax.Array | None, ...] = (None,)
  weight_IO: jax.Array | None = None
  num_items: int = dataclasses.field(default=0, metadata={"static": True})

  @property
  def num_rows(self) -> int:
    """Number of rows of the tables, with padding."""
    return len(self.table[0])

  @property
  def last_item(self) -> int:
    """The last item that may be ranked."""
    return self.num_items or self.num_rows - 1

  def score_all(self) -> jax.Array:
    """Scores [Q, I] of all rows."""
    query = tuple(constrain(query_QV, "targets", None) for query_QV in self.query)
    scorer = dataclasses.replace(self, query=query)
    return constrain(scorer.score_rows((self.table, self.weight_IO)), "targets", "items")

  def score_items(self, item_E: jax.Array) -> jax.Array:
    """Scores [Q, E] of the same E items for every query."""
    rows = jax.tree.map(lambda x: lookup_rows(x, item_E), (self.table, self.weight_IO))
    return self.score_rows(rows)

  def score_targets(self, item_Q: jax.Array) -> jax.Array:
    """Scores [Q] of one item for every query."""
    total_Q = jnp.zeros(len(item_Q))
    for o, (query_QV, table_IV, offset_Q) in enumerate(self._origins()):
      part_Q = (query_QV * lookup_rows(table_IV, item_Q)).sum(1)
      part_Q = part_Q if offset_Q is None else part_Q + offset_Q
      if self.weight_IO is not None:
        part_Q = part_Q * lookup_rows(self.weight_IO, item_Q)[:, o]
      total_Q += part_Q
    return total_Q

  def score_rows(self, rows) -> jax.Array:
    """Scores [Q, E] of rows = (tables, weights), E rows of each: a chunk of `split_rows`."""
    tables, weight_EO = rows
    total_QE = 0.0
    for o, (query_QV, _, offset_Q) in enumerate(self._origins()):
      part_QE = query_QV @ tables[o].T
      part_QE = part_QE if offset_Q is None else part_QE + offset_Q[:, None]
      total_QE += part_QE if weight_EO is None else part_QE * weight_EO[:, o]
    return total_QE

  def split_rows(self, size: int):
    """(tables, weights) in chunks of `size` rows, stacked on a new axis 0; zeros fill the last."""

    def split(x):
      x = jnp.pad(x, ((0, -len(x) % size), (0, 0)))
      return x.reshape(-1, size, x.shape[1])

    return jax.tree.map(split, (self.table, self.weight_IO))

  def _origins(self):
    return zip(self.query, self.table, self.offset, strict=True)
