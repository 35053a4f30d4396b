"""SASRec: self-attentive sequential recommendation. Source: Kang and McAuley, ICDM 2018.

Pre-norm blocks, learned positions, one item table for input and output. Reads shared-prefix rows
without prompt and response, so that every position of every user is a target.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.catalogue_scores import Scorer
from mmesid_jax.models.layers.attention import attention, groups, read, visible
from mmesid_jax.models.layers.linear import Linear, dropout, split
from mmesid_jax.parallel.sharding import constrain, lookup


class Block(nnx.Module):
  """Attention and a two-layer feed-forward, each behind a LayerNorm and dropout."""

  def __init__(self, D: int, heads: int, rate: float, *, rngs: nnx.Rngs):
    self.norm_attention = nnx.LayerNorm(D, rngs=rngs)
    self.norm_mlp = nnx.LayerNorm(D, rngs=rngs)
    self.q, self.k, self.v = (Linear(D, (heads, D // heads), rngs=rngs) for _ in range(3))
    self.out = Linear(D, D, bias=True, rngs=rngs)
    self.up = Linear(D, D, bias=True, rngs=rngs)
    self.down = Linear(D, D, bias=True, rngs=rngs)
    self.rate = rate

  def __call__(self, x_RTD: jax.Array, mask_RTT: jax.Array, key: jax.Array | None) -> jax.Array:
    keys = split(key, 3)
    h_RTD = self.norm_attention(x_RTD)
    a_RTNH = attention(self.q(h_RTD), self.k(h_RTD), self.v(h_RTD), mask_RTT)
    x_RTD = x_RTD + dropout(self.out(a_RTNH.reshape(x_RTD.shape)), self.rate, keys[0])
    h_RTD = dropout(jax.nn.relu(self.up(self.norm_mlp(x_RTD))), self.rate, keys[1])
    return x_RTD + dropout(self.down(h_RTD), self.rate, keys[2])


class SASRec(nnx.Module):
  """Next-item model over I items. `positions` is the longest history that it can read."""

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
    def table(rows):
      return nnx.Param(jax.random.normal(rngs.params(), (rows, D)) * 0.02)

    self.num_items = num_items
    self.item_ID = table(num_items + 1)
    self.position_TD = table(positions)
    self.blocks = nnx.List([Block(D, heads, rate, rngs=rngs) for _ in range(layers)])
    self.norm = nnx.LayerNorm(D, rngs=rngs)
    self.rate = rate

  def hidden(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """[Q, D] at the places that the batch's targets are read."""
    keys = split(key, len(self.blocks) + 1)
    item_RT = batch.item_N[batch.slot_RT]
    D = self.item_ID.shape[-1]
    item_RTD = constrain(lookup(self.item_ID[...], item_RT), "batch", None, None)
    x_RTD = item_RTD * D**0.5 + self.position_TD[...][batch.position_RT]
    x_RTD = dropout(x_RTD, self.rate, keys[-1])
    mask_RTT = visible(batch)
    for block, block_key in zip(self.blocks, keys[:-1], strict=True):
      x_RTD = block(x_RTD, mask_RTT, block_key)
    # Without a prompt nothing is known of an empty history: it reads zeros, and every item ties.
    G = groups(len(x_RTD))
    x_GXD = self.norm(x_RTD).reshape(G, -1, D)
    return read(jnp.concatenate([jnp.zeros((G, 1, D)), x_GXD], axis=1), 1, batch.read_Q)

  def scorer(self, h_QD: jax.Array) -> Scorer:
    """Scores of all items; item 0 is padding and no candidate."""
    return Scorer((h_QD,), (self.item_ID[...],), num_items=self.num_items)

  def item_vectors(self) -> jax.Array:
    """[I, D]: h . item_vectors()[i] is the score of item i."""
    return self.item_ID[...]

  def scores(self, h_QD: jax.Array) -> jax.Array:
    """[Q, I], column i = item i; column 0 is padding and no candidate."""
    return self.scorer(h_QD).all()
