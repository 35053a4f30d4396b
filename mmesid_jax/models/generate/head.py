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

  The code on level k has the vector table[k, code]. Where an item's token is a sum of code vectors,
  the same table is read there. Log-probabilities are log softmax((W_k h) . table[k] + b_k). Source:
  Rajput et al. 2023 (TIGER), here with a softmax a level in the place of a common vocabulary.

  Args:
    ids: unique IDs of the items.
    modality: whose codes they are; the item encoder's tables of that modality are shared.
    D: width of the model.
  """

  def __init__(self, ids: ItemIds, modality: str, D: int, *, rngs: nnx.Rngs):
    K, C = len(ids.sizes), max(ids.sizes)
    self.modality, self.sizes = modality, ids.sizes
    self.code_IK = Frozen(jnp.asarray(ids.code_IK))

    def random(*shape):
      return nnx.Param(jax.random.normal(rngs.params(), shape) * 0.02)

    self.number_CD = random(ids.sizes[-1], D)  # vectors of numbers, of items that share codes
    self.place_KD = random(K, D)
    self.project_KDD = nnx.Param(jnp.tile(jnp.eye(D), (K, 1, 1)))
    self.bias_KC = nnx.Param(jnp.zeros((K, C)))

  @property
  def levels(self) -> int:
    """Number of codes of an ID."""
    return len(self.sizes)

  def table(self, items: ItemEncoder) -> jax.Array:
    """Code vectors [K, C, D]; zeros where a level has fewer codes."""
    book_LCD = items.codebook_LCD[self.modality][...]
    C = max(self.sizes)
    tables = [*book_LCD, self.number_CD[...]][: self.levels]
    return jnp.stack([jnp.pad(x_CD, ((0, C - len(x_CD)), (0, 0))) for x_CD in tables])

  def tokens(self, table_KCD: jax.Array, level: jax.Array | int, code: jax.Array) -> jax.Array:
    """Vectors [..., D] of codes [...] on a level, or on levels [...]."""
    return table_KCD[level, code] + self.place_KD[...][level]

  def log_probabilities(self, table_KCD: jax.Array, level: int, h: jax.Array) -> jax.Array:
    """[..., C] of all codes of a level, from states [..., D]; -inf for codes that it lacks."""
    score = (h @ self.project_KDD[level]) @ table_KCD[level].T + self.bias_KC[level]
    real_C = jnp.arange(score.shape[-1]) < self.sizes[level]
    return jax.nn.log_softmax(jnp.where(real_C, score, -jnp.inf))

  def spelled_tokens(self, table_KCD: jax.Array, batch: Batch, response: int) -> jax.Array:
    """Vectors [R, T, D] of code tokens, to be used where `batch.spelled_RT` is not 0."""
    level_RT = jnp.clip(batch.response_RT - response, 0, self.levels - 1)
    code_RTK = lookup_rows(self.code_IK[...], batch.spelled_RT)
    code_RT = jnp.take_along_axis(code_RTK, level_RT[..., None], axis=-1)[..., 0]
    return self.tokens(table_KCD, level_RT, jnp.maximum(code_RT, 0))

  def item_log_probability(
    self, table_KCD: jax.Array, h_QKD: jax.Array, item_Q: jax.Array
  ) -> jax.Array:
    """log p(ID of the item) [Q], from the states that each of its codes is read at."""
    code_QK = lookup_rows(self.code_IK[...], item_Q)
    total_Q = jnp.zeros(len(item_Q))
    for level in range(self.levels):
      log_p_QC = self.log_probabilities(table_KCD, level, h_QKD[:, level])
      code_Q = code_QK[:, level, None]
      log_p_Q = jnp.take_along_axis(log_p_QC, jnp.maximum(code_Q, 0), axis=1)[:, 0]
      total_Q += jnp.where(code_QK[:, level] == NO_CODE, 0, log_p_Q)
    return total_Q
