"""Frequency-aware fusion: how far an item's score rests on what was learned of it or on its
content.

Source: MME-SID, section 4: score(i) = w_x (o . E_x[i]) + sum_m w_m (o . (W_m e_m[i] + b_m)), where
the weights of item i come from its frequency in the training part alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.catalogue_scores import Scorer
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.linear import Linear, gelu
from mmesid_jax.parallel.sharding import lookup
from mmesid_jax.parallel.variables import Frozen


def normalised_frequency(counts_I: np.ndarray) -> np.ndarray:
  """min-max over items 1..I of log(count + 1), float32 [I + 1]; row 0 (padding) is 0."""
  log = np.log1p(counts_I.astype(np.float64))
  low, high = log[1:].min(), log[1:].max()
  scaled = (log - low) / max(high - low, 1e-12)
  scaled[0] = 0
  return scaled.astype(np.float32)


class FrequencyFusion(nnx.Module):
  """Weights [I, 1 + M] of the learned table and of M modalities, softmax(g(frequency) /
  temperature).

  g = Linear(1, 64) - gelu - Linear(64, 10) - Linear(10, 64, no bias) - gelu - Linear(64, 1 + M), as
  in the released code. kind "frequency", or "sum": every weight 1 and no parameters (the paper's
  ablation).
  """

  def __init__(
    self, counts_I: np.ndarray, M: int, *, kind: str, temperature: float, rngs: nnx.Rngs
  ):
    self.kind, self.temperature, self.sources = kind, temperature, 1 + M
    self.frequency_I = Frozen(jnp.asarray(normalised_frequency(counts_I)))
    # bool [I, 1 + M], the sources that an item has, once some lack any; None = all have all
    self.known_IS = nnx.data(None)
    if kind == "frequency":
      self.layers = nnx.List(
        [
          Linear(1, 64, bias=True, rngs=rngs),
          Linear(64, 10, bias=True, rngs=rngs),
          Linear(10, 64, rngs=rngs),
          Linear(64, 1 + M, bias=True, rngs=rngs),
        ]
      )

  def weights(self) -> jax.Array:
    """float32 [I, 1 + M], the learned table's first. A source that an item lacks weighs 0; the
    others share what is left as they would without it."""
    frequency_I = self.frequency_I[...]
    known_IS = None if self.known_IS is None else self.known_IS[...]
    if self.kind == "sum":
      ones_IS = jnp.ones((len(frequency_I), self.sources))
      return ones_IS if known_IS is None else ones_IS * known_IS
    first, down, up, last = self.layers
    hidden = gelu(up(down(gelu(first(frequency_I[:, None])))))
    return jax.nn.softmax(last(hidden) / self.temperature, axis=-1, where=known_IS)


def projects_catalogue(Q: int, D: int) -> bool:
  """Whether `scorer` of so many targets projects the catalogue into the model's width."""
  return Q > D


def item_vectors(items: ItemEncoder, weight_IS: jax.Array) -> jax.Array:
  """[I, D], with which o . item is the formula above."""
  item_ID = weight_IS[:, :1] * items.identity_ID[...]
  for s, m in enumerate(items.modalities, start=1):
    item_ID = item_ID + weight_IS[:, s : s + 1] * items.project[m](items.feature_IV[m][...])
  return item_ID


def contributions(
  items: ItemEncoder, weight_IS: jax.Array, o_QD: jax.Array, item_QK: jax.Array
) -> jax.Array:
  """[Q, K, 1 + M]: what every source adds to the scores of K items a target, the summands of the
  formula above."""
  row_QKD = [lookup(items.identity_ID[...], item_QK)]
  for m in items.modalities:
    row_QKD.append(items.project[m](lookup(items.feature_IV[m][...], item_QK)))
  part_QKS = jnp.stack([jnp.einsum("qd,qkd->qk", o_QD, row) for row in row_QKD], axis=-1)
  return part_QKS * lookup(weight_IS, item_QK)


def scorer(
  o_QD: jax.Array, items: ItemEncoder, weight_IS: jax.Array, *, project: bool | None = None
) -> Scorer:
  """The formula above. Codes are inputs only, items are scored by row and content.

  Two orders of the same products: with few targets (o W) e, so the catalogue is never projected
  into D; with more targets than D is wide, projecting the catalogue once is the cheaper one.
  project None takes the cheaper one of a whole catalogue.
  """
  if projects_catalogue(*o_QD.shape) if project is None else project:
    return Scorer((o_QD,), (item_vectors(items, weight_IS),), num_items=items.num_items)
  parts = [(items.project[m], items.feature_IV[m][...]) for m in items.modalities]
  return Scorer(
    query=(o_QD, *(o_QD @ linear.weight[...].T for linear, _ in parts)),
    table=(items.identity_ID[...], *(feature_IV for _, feature_IV in parts)),
    offset=(None, *(o_QD @ linear.bias[...] for linear, _ in parts)),
    weight_IS=weight_IS,
    num_items=items.num_items,
  )
