"""The codes of the next item's semantic ID, one after the other: what is read, and their scores."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.parallel.sharding import lookup_rows
from mmesid_jax.parallel.variables import Derived
from mmesid_jax.quantize.id_trie import IdTrie
from mmesid_jax.quantize.item_ids import ItemIds


class GenerativeHead(nnx.Module):
  """Scores codes from hidden states, and gives the vectors of the codes that were chosen.

  Scores on level l are table_l (h + W_l h) + b_l. table_l are the codebook vectors of the level,
  which the item encoder reads, too, or the vectors of the numbers of items that share all codes.
  Their softmax is over the codes that may follow the ones before, so the probabilities of all items
  add up to 1. A code is read as its codebook vector plus a vector of its level. Source: Rajput et
  al. 2023 (TIGER), there with a softmax over all codes of all levels.

  Args:
    ids: unique IDs of the items; trie: all of them.
    modalities: whose codes they are, in the order of `join_codes`.
    codes: number of levels that are codes; one more is a number.
    D: width of the model.
  """

  def __init__(
    self,
    ids: ItemIds,
    trie: IdTrie,
    modalities: Sequence[str],
    codes: int,
    D: int,
    *,
    rngs: nnx.Rngs,
  ):
    self.modalities = tuple(modalities)
    self.sizes, self.shared = ids.sizes, ids.shared
    self.set_ids(ids.id_IL, trie)

    def random(*shape):
      return nnx.Param(jax.random.normal(rngs.params(), shape) * 0.02)

    self.number_CD = random(ids.sizes[-1], D) if self.levels > codes else None
    self.place_LD = random(codes, D)
    self.project_LDD = nnx.Param(jnp.zeros((self.levels, D, D)))
    self.bias = nnx.Dict({str(n): nnx.Param(jnp.zeros(size)) for n, size in enumerate(ids.sizes)})

  def set_ids(self, id_IL: np.ndarray, trie: IdTrie) -> None:
    """Replaces the IDs of the items, and what may be generated."""

    def by_level(arrays):
      return nnx.Dict({str(level): Derived(jnp.asarray(x)) for level, x in enumerate(arrays)})

    self.id_IL, self.path_IL = Derived(jnp.asarray(id_IL)), Derived(jnp.asarray(trie.path))
    self.first_child, self.code = by_level(trie.first_child), by_level(trie.code)
    self.leaf_item, self.most_children = Derived(jnp.asarray(trie.item)), trie.most_children

  @property
  def levels(self) -> int:
    """Number of levels of an ID, with that of the number."""
    return len(self.sizes)

  @property
  def trie(self) -> IdTrie:
    """The IDs that may be generated."""

    def by_level(arrays):
      return tuple(arrays[str(level)][...] for level in range(self.levels))

    return IdTrie(
      by_level(self.first_child),
      by_level(self.code),
      self.leaf_item[...],
      self.path_IL[...],
      self.most_children,
    )

  def codebook(self, items: ItemEncoder) -> jax.Array:
    """The vectors of all codes, [L, C, D]."""
    books = [items.codebook_LCD[m][...] for m in self.modalities]
    return jnp.stack(books, axis=1).reshape(-1, *books[0].shape[1:])

  def tokens(self, codebook: jax.Array, level: jax.Array | int, code: jax.Array) -> jax.Array:
    """Vectors [..., D] of codes [...] on a level, or on levels [...]."""
    return codebook[level, code] + self.place_LD[...][level]

  def scores(self, codebook: jax.Array, level: int, h: jax.Array) -> jax.Array:
    """[..., C] of all codes of a level, from states [..., D]."""
    table_CD = codebook[level] if level < len(codebook) else self.number_CD[...]
    return (h + h @ self.project_LDD[level]) @ table_CD.T + self.bias[str(level)][...]

  def spelled_tokens(self, codebook: jax.Array, batch: Batch, response: int) -> jax.Array:
    """Vectors [R, T, D] of code tokens, to be used where `batch.spelled_RT` is not 0."""
    level_RT = jnp.clip(batch.response_RT - response, 0, len(codebook) - 1)
    code_RTL = lookup_rows(self.id_IL[...], batch.spelled_RT)
    code_RT = jnp.take_along_axis(code_RTL, level_RT[..., None], axis=-1)[..., 0]
    return self.tokens(codebook, level_RT, code_RT)

  def item_log_probability(
    self, codebook: jax.Array, h_QLD: jax.Array, item_Q: jax.Array
  ) -> jax.Array:
    """log p(ID of the item) [Q], from the states that each of its codes is read at."""
    trie, total_Q = self.trie, jnp.zeros(len(item_Q))
    path = jnp.maximum(lookup_rows(self.path_IL[...], item_Q), 0)
    for level in range(self.levels):
      score_QC = self.scores(codebook, level, h_QLD[:, level])
      children = trie.children(level, path[:, level], score_QC)
      own_Q1 = (path[:, level + 1] - children.first)[:, None]
      total_Q += jnp.take_along_axis(children.log_p, own_Q1, axis=1)[:, 0]
    return total_Q
