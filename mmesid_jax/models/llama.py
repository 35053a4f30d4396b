"""Llama blocks over shared-prefix rows: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Two streams pass through every layer: the prompt [P, D], computed once a step, and the rows [R, T,
D], whose tokens all see the prompt's keys and values. Layers are stacked on axis 0 and scanned.
Sources: Touvron et al. 2023; Hugging Face's conventions (half-split rotation, unscaled q), so
weights carry over.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.models.attention import attention
from mmesid_jax.models.linear import Linear, RMSNorm, dropout, split

# Standard deviation of every fresh weight, Hugging Face's initializer_range: what a layer adds at
# first is as small as the item vectors that it is added to, so it does not drown them.
INIT = 0.02


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Sizes: layers, D model width, F mlp width, N query heads, K key/value heads, H head width."""

  layers: int
  D: int
  F: int
  N: int
  K: int
  H: int
  rope_theta: float = 500_000.0
  norm_eps: float = 1e-5
  dropout: float = 0.0


def rotate(x_RTNH: jax.Array, position_RT: jax.Array, theta: float) -> jax.Array:
  """Rotary position embedding, half-split as in Hugging Face; angles in float32. Source: Su et al.
  2021."""
  half = x_RTNH.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = position_RT[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = jnp.split(x_RTNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)
  return rotated.astype(x_RTNH.dtype)


class GatedMLP(nnx.Module):
  """Llama's feed-forward: down(silu(gate(x)) * up(x)). Shapes [..., D] -> [..., D]."""

  def __init__(self, D: int, F: int, *, rngs: nnx.Rngs):
    self.gate = Linear(D, F, std=INIT, rngs=rngs)
    self.up = Linear(D, F, std=INIT, rngs=rngs)
    self.down = Linear(F, D, std=INIT, rngs=rngs)

  def __call__(self, x_RTD: jax.Array) -> jax.Array:
    return self.down(jax.nn.silu(self.gate(x_RTD)) * self.up(x_RTD))


class Attention(nnx.Module):
  """Grouped-query attention of the prompt to itself and of the rows to the prompt and their own
  mask."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.q = Linear(c.D, (c.N, c.H), std=INIT, rngs=rngs)
    self.k = Linear(c.D, (c.K, c.H), std=INIT, rngs=rngs)
    self.v = Linear(c.D, (c.K, c.H), std=INIT, rngs=rngs)
    self.out = Linear(c.N * c.H, c.D, std=INIT, rngs=rngs)
    self.theta = c.rope_theta

  def project(self, x_RTD: jax.Array, position_RT: jax.Array) -> tuple[jax.Array, ...]:
    """Rotated queries and keys, and values."""
    q, k = (rotate(f(x_RTD), position_RT, self.theta) for f in (self.q, self.k))
    return q, k, self.v(x_RTD)

  def __call__(
    self, prompt_PD: jax.Array, x_RTD: jax.Array, position_RT: jax.Array, mask_RTT: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    R, T, D = x_RTD.shape
    P = len(prompt_PD)
    q_1PNH, *prompt_kv = self.project(prompt_PD[None], jnp.arange(P)[None])
    causal_1PP = jnp.tri(P, dtype=bool)[None]
    prompt_1PNH = attention(q_1PNH, *prompt_kv, causal_1PP)

    q_RTNH, *row_kv = self.project(x_RTD, P + position_RT)
    # [prompt, row]: every token sees the whole prompt, so no token is left with nothing to see.
    k, v = (
      jnp.concatenate([jnp.broadcast_to(p, (R, *p.shape[1:])), r], axis=1)
      for p, r in zip(prompt_kv, row_kv, strict=True)
    )
    mask_RTS = jnp.concatenate([jnp.ones((R, T, P), bool), mask_RTT], axis=2)
    row_RTNH = attention(q_RTNH, k, v, mask_RTS)
    return self.out(prompt_1PNH.reshape(P, -1)), self.out(row_RTNH.reshape(R, T, -1))


class Block(nnx.Module):
  """One layer, both streams."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.norm_attention = RMSNorm(c.D, eps=c.norm_eps)
    self.attention = Attention(c, rngs=rngs)
    self.norm_mlp = RMSNorm(c.D, eps=c.norm_eps)
    self.mlp = GatedMLP(c.D, c.F, rngs=rngs)
    self.rate = c.dropout

  def __call__(self, prompt_PD, x_RTD, position_RT, mask_RTT, key):
    def add(stream, update, update_key):
      return stream + dropout(update, self.rate, update_key)

    keys = split(key, 4)
    update_prompt, update_row = self.attention(
      self.norm_attention(prompt_PD), self.norm_attention(x_RTD), position_RT, mask_RTT
    )
    prompt_PD, x_RTD = add(prompt_PD, update_prompt, keys[0]), add(x_RTD, update_row, keys[1])
    prompt_PD = add(prompt_PD, self.mlp(self.norm_mlp(prompt_PD)), keys[2])
    x_RTD = add(x_RTD, self.mlp(self.norm_mlp(x_RTD)), keys[3])
    return prompt_PD, x_RTD


class Llama(nnx.Module):
  """A stack of blocks and the final norm. In and out: prompt [P, D] and rows [R, T, D]."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.blocks = nnx.vmap(lambda r: Block(c, rngs=r))(rngs.split(c.layers))
    self.norm = RMSNorm(c.D, eps=c.norm_eps)
    self.layers = c.layers

  def __call__(
    self,
    prompt_PD: jax.Array,
    x_RTD: jax.Array,
    position_RT: jax.Array,
    mask_RTT: jax.Array,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """position_RT counts from the end of the prompt; mask_RTT as `attention.visible` makes it."""
    graph, stacked = nnx.split(self.blocks)
    keys = None if key is None else jax.random.split(key, self.layers)

    def layer(streams, state_and_key):
      state, layer_key = state_and_key
      return nnx.merge(graph, state)(*streams, position_RT, mask_RTT, layer_key), None

    streams, _ = jax.lax.scan(layer, (prompt_PD, x_RTD), (stacked, keys))
    return tuple(self.norm(x) for x in streams)
