"""One vector per item for the Llama, from its learned row, its features and its codes.

Source: MME-SID, section 4 ("Fine-tuning"): projected feature vectors, and quantized vectors as sums
of code embeddings whose tables start from the trained codebooks.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.models.layers.linear import Linear, gelu
from mmesid_jax.parallel.sharding import constrain, lookup_rows
from mmesid_jax.parallel.variables import Frozen
from mmesid_jax.quantize.item_ids import NO_CODE


class ItemEncoder(nnx.Module):
  """Item ids [...] -> vectors [..., D] in the dtype `compute`; tables and weights are float32.

  kind "mlp" (paper): gelu(MLP(concat over modalities of [W_m e_m + b_m ; sum_l E^m_l[code]])), the
  MLP 2MD -> MD -> relu -> D. kind "tied": the sum of the item's learned row and of the same parts,
  so the parameters that read an item also score it. kind "untied": the same sum, with separate
  projections of the features for reading.

  Args:
    features: modality -> float32 [I, V].
    codes: modality -> int32 [I, L]; may be empty, then codebooks is empty too.
    codebooks: modality -> float32 [L, C, D], trained unless `frozen_codes`.
    D: width of the model.
    kind: "mlp", "tied" or "untied", as above.
    compute: dtype of the vectors.
  """

  def __init__(
    self,
    features: Mapping[str, jax.Array],
    codes: Mapping[str, jax.Array],
    codebooks: Mapping[str, jax.Array],
    *,
    D: int,
    kind: str,
    frozen_codes: bool = False,
    compute: str = "float32",
    rngs: nnx.Rngs,
  ):
    rows = len(next(iter(features.values())))
    self.num_items = rows - 1
    self.modalities = tuple(features)
    self.kind, self.compute = kind, compute
    self.identity_ID = nnx.Param(jax.random.normal(rngs.params(), (rows, D)) * 0.02)
    self.feature_IV = nnx.Dict({m: Frozen(jnp.asarray(x)) for m, x in features.items()})

    def projections():
      return nnx.Dict({m: Linear(x.shape[1], D, bias=True, rngs=rngs) for m, x in features.items()})

    self.project = projections()  # used by the fusion for scores
    self.project_input = projections() if kind == "untied" else None
    self.code_IL = nnx.Dict({m: Frozen(jnp.asarray(x)) for m, x in codes.items()})
    variable = Frozen if frozen_codes else nnx.Param
    self.codebook_LCD = nnx.Dict({m: variable(jnp.asarray(x)) for m, x in codebooks.items()})
    if kind == "mlp":
      parts = len(features) + len(codes)
      self.hidden = Linear(parts * D, parts * D // 2, bias=True, rngs=rngs)
      self.out = Linear(parts * D // 2, D, bias=True, rngs=rngs)

  def code_vectors(self, modality: str, item: jax.Array) -> jax.Array:
    """Sum over levels of the items' code embeddings, [..., D]."""
    table_LCD = self.codebook_LCD[modality][...]
    code = _divide_over_devices(lookup_rows(self.code_IL[modality][...], item))
    level = jnp.arange(table_LCD.shape[0])
    return jnp.where(code[..., None] == NO_CODE, 0, table_LCD[level, code]).sum(-2)

  def feature_vectors(self, modality: str, item: jax.Array) -> jax.Array:
    """The items' projected features, a part of their tokens, [..., D]."""
    project = self.project if self.project_input is None else self.project_input
    feature = _divide_over_devices(lookup_rows(self.feature_IV[modality][...], item))
    return project[modality](feature.astype(self.compute))

  def __call__(self, item: jax.Array) -> jax.Array:
    """Tokens [..., D] of item ids [...]."""
    parts = [self.feature_vectors(m, item) for m in self.modalities]
    parts += [self.code_vectors(m, item).astype(self.compute) for m in self.code_IL]
    if self.kind != "mlp":
      return lookup_rows(self.identity_ID[...], item).astype(self.compute) + sum(parts)
    return gelu(self.out(jax.nn.relu(self.hidden(jnp.concatenate(parts, -1)))))


def _divide_over_devices(x: jax.Array) -> jax.Array:
  """Divides the items over the devices, so that each item's token is computed once."""
  return constrain(x, "batch", *(None,) * (x.ndim - 1))
