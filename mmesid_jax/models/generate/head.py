"""The codes of the next item's semantic ID, one after the other: what is read, and their scores."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.parallel.sharding import lookup_rows
from mmesid_jax.parallel.variables import Frozen
from mmesid_jax.quantize.item_ids import NO_CODE, ItemIds


class GenerativeHead(nnx.Module):
  """Scores codes from hidden states, and gives the vectors of the codes that were chosen.

  Log-probabilities on level l are log softmax(table_l (h + W_l h) + b_l). table_l are the codebook
  vectors of the level, which the item encoder reads, too, or the vectors of the numbers of items
  that share all codes. A code is read as its codebook vector plus a vector of its level. Source:
  Rajput et al. 2023 (TIGER), here with a softmax for each level in the place of a common one.

  Args:
    ids: unique IDs of the items.
    modality: whose codes they are.
    codes: number of levels that are codes; one more is a number.
    D: width of the model.
  """

  def __init__(self, ids: ItemIds, modality: str, codes: int, D: int, *, rngs: nnx.Rngs):
    self.modality, self.sizes, self.shared = modality, ids.sizes, ids.shared
    self.id_IL = Frozen(jnp.asarray(ids.id_IL))

    def random(*shape):
      return nnx.Param(jax.random.normal(rngs.params(), shape) * 0.02)

    self.number_CD = random(ids.sizes[-1], D) if self.levels > codes else None
    self.place_LD = random(codes, D)
    self.project_LDD = nnx.Param(jnp.zeros((self.levels, D, D)))
    self.bias = nnx.Dict({str(n): nnx.Param(jnp.zeros(size)) for n, size in enumerate(ids.sizes)})

  @property
  def levels(self) -> int:
    """Number of levels of an ID, with that of the number."""
    return len(self.sizes)

  def codebook(self, items: ItemEncoder) -> jax.Array:
    """The vectors of all codes, [L, C, D]."""
    return items.codebook_LCD[self.modality][...]

  def tokens(self, codebook: jax.Array, level: jax.Array | int, code: jax.Array) -> jax.Array:
    """Vectors [..., D] of codes [...] on a level, or on levels [...]."""
    return codebook[level, code] + self.place_LD[...][level]

  def log_probabilities(self, codebook: jax.Array, level: int, h: jax.Array) -> jax.Array:
    """[..., C] of all codes of a level, from states [..., D]."""
    table_CD = codebook[level] if level < len(codebook) else self.number_CD[...]
    score = (h + h @ self.project_LDD[level]) @ table_CD.T + self.bias[str(level)][...]
    return jax.nn.log_softmax(score)

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
    code_QL = lookup_rows(self.id_IL[...], item_Q)
    total_Q = jnp.zeros(len(item_Q))
    for level in range(self.levels):
      log_p_QC = self.log_probabilities(codebook, level, h_QLD[:, level])
      code_Q1 = jnp.maximum(code_QL[:, level, None], 0)
      log_p_Q = jnp.take_along_axis(log_p_QC, code_Q1, axis=1)[:, 0]
      total_Q += jnp.where(code_QL[:, level] == NO_CODE, 0, log_p_Q)
    return total_Q
