"""Frequency-aware fusion: weights of an item's learned row and of its content in its score.

Source: MME-SID, section 4: score(i) = w_x (o . E_x[i]) + sum_m w_m (o . (W_m e_m[i] + b_m)), where
the weights of item i depend only on its frequency in the training part.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.catalogue_scores import Scorer
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.linear import Linear, gelu
from mmesid_jax.parallel.sharding import lookup_rows
from mmesid_jax.parallel.variables import Frozen


def normalized_frequency(counts_I: np.ndarray) -> np.ndarray:
  """log(count + 1), scaled to [0, 1] over the items, float32 [I]; row 0 (padding) is 0."""
  log_I = np.log1p(counts_I.astype(np.float64))
  low, high = log_I[1:].min(), log_I[1:].max()
  frequency_I = (log_I - low) / max(high - low, 1e-12)
  frequency_I[0] = 0
  return frequency_I.astype(np.float32)


class FrequencyFusion(nnx.Module):
  """Weights [I, O] of the learned table and of M modalities, softmax(g(frequency) / temperature).

  g = Linear(1, 64) - gelu - Linear(64, 10) - Linear(10, 64, no bias) - gelu - Linear(64, 1 + M), as
  in the released code. kind: "frequency", or "sum", where all weights are 1 and there are no
  parameters (an ablation of the paper). counts_I: occurrences of items in the training part.
  """

  def __init__(
    self, counts_I: np.ndarray, M: int, *, kind: str, temperature: float, rngs: nnx.Rngs
  ):
    self.kind, self.temperature, self.sources = kind, temperature, 1 + M
    self.frequency_I = Frozen(jnp.asarray(normalized_frequency(counts_I)))
    # bool, the origins that an item has; None = every item has all of them
    self.known_IO = nnx.data(None)
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
    """Weights float32 [I, O]; column 0 is the learned table's.

    An origin that an item lacks has weight 0, and the softmax is over the others.
    """
    frequency_I = self.frequency_I[...]
    known_IO = None if self.known_IO is None else self.known_IO[...]
    if self.kind == "sum":
      ones_IO = jnp.ones((len(frequency_I), self.sources))
      return ones_IO if known_IO is None else ones_IO * known_IO
    first, down, up, last = self.layers
    hidden = gelu(up(down(gelu(first(frequency_I[:, None])))))
    return jax.nn.softmax(last(hidden) / self.temperature, axis=-1, where=known_IO)


def should_project_catalogue(Q: int, D: int) -> bool:
  """Whether it is cheaper to project the catalogue into the model's width; see `fusion_scorer`."""
  return Q > D


def item_vectors(items: ItemEncoder, weight_IO: jax.Array) -> jax.Array:
  """Vectors [I, D]; o . item_vectors()[i] is the score of item i by the formula above."""
  item_ID = weight_IO[:, :1] * items.identity_ID[...]
  for o, m in enumerate(items.modalities, start=1):
    item_ID = item_ID + weight_IO[:, o : o + 1] * items.project[m](items.feature_IV[m][...])
  return item_ID


def score_contributions(
  items: ItemEncoder, weight_IO: jax.Array, o_QD: jax.Array, item_QA: jax.Array
) -> jax.Array:
  """Summands [Q, A, O] of the formula above, for the scores of A items per target."""
  row_QAD = [lookup_rows(items.identity_ID[...], item_QA)]
  for m in items.modalities:
    row_QAD.append(items.project[m](lookup_rows(items.feature_IV[m][...], item_QA)))
  part_QAO = jnp.stack([jnp.einsum("qd,qkd->qk", o_QD, row) for row in row_QAD], axis=-1)
  return part_QAO * lookup_rows(weight_IO, item_QA)


def fusion_scorer(
  o_QD: jax.Array, items: ItemEncoder, weight_IO: jax.Array, *, project: bool | None = None
) -> Scorer:
  """Scorer of the formula above. Codes are only inputs: items are scored by row and content.

  There are two orders of the same products. With few targets (o W) e is cheaper: the catalogue is
  not projected. With more than D targets, projecting the catalogue once is cheaper.

  Args:
    o_QD: hidden states of the targets.
    items: tables and projections of the items.
    weight_IO: `FrequencyFusion.weights`.
    project: whether to project the catalogue; None = the cheaper order if all items are scored.
  """
  if should_project_catalogue(*o_QD.shape) if project is None else project:
    return Scorer((o_QD,), (item_vectors(items, weight_IO),), num_items=items.num_items)
  parts = [(items.project[m], items.feature_IV[m][...]) for m in items.modalities]
  return Scorer(
    query=(o_QD, *(o_QD @ linear.weight[...].T for linear, _ in parts)),
    table=(items.identity_ID[...], *(feature_IV for _, feature_IV in parts)),
    offset=(None, *(o_QD @ linear.bias[...] for linear, _ in parts)),
    weight_IO=weight_IO,
    num_items=items.num_items,
  )
