"""SASRec: self-attentive sequential recommendation. Source: Kang and McAuley, ICDM 2018.

Pre-norm blocks, learned positions, one item table for input and output. Reads shared-prefix rows
without prompt and response, so that every position of every user is a target.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.catalogue_scores import ProductScores, Scorer
from mmesid_jax.models.layers.attention import attention
from mmesid_jax.models.layers.linear import Linear, dropout, split_key
from mmesid_jax.models.packed_rows import group_count, read_targets, visibility_mask
from mmesid_jax.parallel.sharding import constrain, lookup_rows


class Block(nnx.Module):
  """Attention and a two-layer feed-forward, each after a LayerNorm and followed by dropout."""

  def __init__(self, D: int, heads: int, rate: float, *, rngs: nnx.Rngs):
    self.norm_attention = nnx.LayerNorm(D, rngs=rngs)
    self.norm_mlp = nnx.LayerNorm(D, rngs=rngs)
    self.q, self.k, self.v = (Linear(D, (heads, D // heads), rngs=rngs) for _ in range(3))
    self.out = Linear(D, D, bias=True, rngs=rngs)
    self.up = Linear(D, D, bias=True, rngs=rngs)
    self.down = Linear(D, D, bias=True, rngs=rngs)
    self.rate = rate

  def __call__(self, x_RTD: jax.Array, mask_RTT: jax.Array, key: jax.Array | None) -> jax.Array:
    keys = split_key(key, 3)
    h_RTD = self.norm_attention(x_RTD)
    a_RTNH = attention(self.q(h_RTD), self.k(h_RTD), self.v(h_RTD), mask_RTT)
    x_RTD = x_RTD + dropout(self.out(a_RTNH.reshape(x_RTD.shape)), self.rate, keys[0])
    h_RTD = dropout(jax.nn.relu(self.up(self.norm_mlp(x_RTD))), self.rate, keys[1])
    return x_RTD + dropout(self.down(h_RTD), self.rate, keys[2])


class SASRec(ProductScores, nnx.Module):
  """Next-item model over `num_items` items.

  Args:
    num_items: number of items, without padding.
    D: width; layers, heads: number of blocks and of heads in each, which divides D.
    positions: length of the longest history that the model can read.
    rate: of dropout.
  """

  def __init__(
    self,
    num_items: int,
    *,
    D: int,
    layers: int,
    heads: int,
    positions: int,
    rate: float,
    rngs: nnx.Rngs,
  ):
    def init_table(rows):
      return nnx.Param(jax.random.normal(rngs.params(), (rows, D)) * 0.02)

    self.num_items = num_items
    self.item_ID = init_table(num_items + 1)
    self.position_TD = init_table(positions)
    self.blocks = nnx.List([Block(D, heads, rate, rngs=rngs) for _ in range(layers)])
    self.norm = nnx.LayerNorm(D, rngs=rngs)
    self.rate = rate

  def hidden(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Hidden states [Q, D] from which the batch's targets are predicted; key: for dropout."""
    keys = split_key(key, len(self.blocks) + 1)
    item_RT = batch.item_E[batch.slot_RT]
    D = self.item_ID.shape[-1]
    item_RTD = constrain(lookup_rows(self.item_ID[...], item_RT), "batch", None, None)
    x_RTD = item_RTD * D**0.5 + self.position_TD[...][batch.position_RT]
    x_RTD = dropout(x_RTD, self.rate, keys[-1])
    mask_RTT = visibility_mask(batch)
    for block, block_key in zip(self.blocks, keys[:-1], strict=True):
      x_RTD = block(x_RTD, mask_RTT, block_key)
    # There is no prompt, so an empty history reads a vector of zeros, and all items tie.
    G = group_count(len(x_RTD))
    row_GED = self.norm(x_RTD).reshape(G, -1, D)
    x_GJD = jnp.concatenate([jnp.zeros((G, 1, D)), row_GED], axis=1)
    return read_targets(x_GJD, 1, batch.read_Q)

  def scorer(self, h_QD: jax.Array) -> Scorer:
    """Scorer of all items; item 0 is padding, not a candidate."""
    return Scorer((h_QD,), (self.item_ID[...],), num_items=self.num_items)

  def item_vectors(self) -> jax.Array:
    """Vectors [I, D]; the score of item i is h . item_vectors()[i]."""
    return self.item_ID[...]

  def scores(self, h_QD: jax.Array) -> jax.Array:
    """Scores [Q, I], column i = item i; column 0 is padding, not a candidate."""
    return self.scorer(h_QD).score_all()
