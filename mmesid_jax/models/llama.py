"""Llama blocks over shared-prefix rows: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Two streams pass through every layer: the prompt [P, D], computed once a step, and the rows [R, T,
D], whose tokens all see the prompt's keys and values. Layers are stacked on axis 0 and scanned.
Sources: Touvron et al. 2023; Hugging Face's conventions (half-split rotation, unscaled q), so
weights carry over.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.attention import attention
from mmesid_jax.models.linear import dropout, split
from mmesid_jax.models.lora import LoRAConfig
from mmesid_jax.models.projection import Projection
from mmesid_jax.models.variables import LoRAParam, Pretrained


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3.1's stretch of the rotation to longer texts; lengths in tokens."""

  factor: float
  low_frequency_factor: float
  high_frequency_factor: float
  original_length: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Sizes: layers, D model width, F mlp width, N query heads, K key/value heads, H head width.

  weights: "trained", or how frozen ones are kept (storage.KINDS); compute: dtype of activations.
  remat: "none" keeps every activation for the backward pass; "layers" keeps what enters a layer and
  computes the rest again. unroll: layers that the compiler sees at once in the scan over them.
  """

  layers: int
  D: int
  F: int
  N: int
  K: int
  H: int
  rope_theta: float = 500_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-5
  dropout: float = 0.0
  weights: str = "trained"
  compute: str = "float32"
  remat: str = "none"
  unroll: int = 1
  lora: LoRAConfig | None = None

  @property
  def projections(self) -> dict[str, tuple[int, tuple[int, ...]]]:
    """A block's projections: name -> (width in, shape out)."""
    return {
      "q": (self.D, (self.N, self.H)),
      "k": (self.D, (self.K, self.H)),
      "v": (self.D, (self.K, self.H)),
      "out": (self.N * self.H, (self.D,)),
      "gate": (self.D, (self.F,)),
      "up": (self.D, (self.F,)),
      "down": (self.F, (self.D,)),
    }

  @property
  def weights_a_layer(self) -> int:
    """Weights of a block's projections, without LoRA."""
    return sum(d_in * math.prod(d_out) for d_in, d_out in self.projections.values())

  @property
  def parameters(self) -> int:
    """Weights of all blocks and norms; no embeddings, no LoRA."""
    return self.layers * (self.weights_a_layer + 2 * self.D) + self.D

  def projection(self, name: str, rngs: nnx.Rngs) -> Projection:
    """The block's projection of that name, adapted if the name is among the LoRA targets."""
    d_in, d_out = self.projections[name]
    lora = self.lora if self.lora and name in self.lora.targets else None
    return Projection(d_in, d_out, weights=self.weights, lora=lora, rngs=rngs)


def frequencies(c: LlamaConfig) -> np.ndarray:
  """Radians a position, float32 [H / 2]. Source: Su et al. 2021.

  With scaling, as Llama 3.1: waves longer than original_length / low_frequency_factor are slowed
  down by factor, those shorter than original_length / high_frequency_factor stay, linear between.
  """
  half = c.H // 2
  frequency = c.rope_theta ** -(np.arange(half) / half)
  if (s := c.rope_scaling) is not None:
    turns = s.original_length * frequency / (2 * np.pi)
    keep = (turns - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor)
    keep = np.clip(keep, 0, 1)
    frequency = frequency * (keep + (1 - keep) / s.factor)
  return frequency.astype(np.float32)


def rotate(x_RTNH: jax.Array, position_RT: jax.Array, frequency: np.ndarray) -> jax.Array:
  """Rotary position embedding, half-split as in Hugging Face; angles in float32."""
  angle = position_RT[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = jnp.split(x_RTNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)
  return rotated.astype(x_RTNH.dtype)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis, in float32 whatever x is. Source: Zhang and Sennrich
  2019."""

  def __init__(self, c: LlamaConfig):
    if c.weights == "trained":
      self.scale = nnx.Param(jnp.ones(c.D))
    else:
      self.scale = Pretrained(jnp.ones(c.D, "float32" if c.weights == "float32" else "bfloat16"))
    self.eps = c.norm_eps

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


class GatedMLP(nnx.Module):
  """Llama's feed-forward: down(silu(gate(x)) * up(x)). Shapes [..., D] -> [..., D]."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.gate = c.projection("gate", rngs)
    self.up = c.projection("up", rngs)
    self.down = c.projection("down", rngs)

  def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
    keys = split(key, 3)
    return self.down(jax.nn.silu(self.gate(x, keys[0])) * self.up(x, keys[1]), keys[2])


class Attention(nnx.Module):
  """Grouped-query attention of the prompt to itself and of the rows to the prompt and their own
  mask."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.q = c.projection("q", rngs)
    self.k = c.projection("k", rngs)
    self.v = c.projection("v", rngs)
    self.out = c.projection("out", rngs)
    self.config = c

  def project(self, x_RTD: jax.Array, position_RT: jax.Array, key) -> tuple[jax.Array, ...]:
    """Rotated queries and keys, and values."""
    keys, frequency = split(key, 3), frequencies(self.config)
    q, k = (
      rotate(f(x_RTD, f_key), position_RT, frequency)
      for f, f_key in ((self.q, keys[0]), (self.k, keys[1]))
    )
    return q, k, self.v(x_RTD, keys[2])

  def __call__(
    self, prompt_PD: jax.Array, x_RTD: jax.Array, position_RT: jax.Array, mask_RTT: jax.Array, key
  ) -> tuple[jax.Array, jax.Array]:
    R, T, D = x_RTD.shape
    P = len(prompt_PD)
    keys = split(key, 4)
    q_1PNH, *prompt_kv = self.project(prompt_PD[None], jnp.arange(P)[None], keys[0])
    causal_1PP = jnp.tri(P, dtype=bool)[None]
    prompt_1PNH = attention(q_1PNH, *prompt_kv, causal_1PP)

    q_RTNH, *row_kv = self.project(x_RTD, P + position_RT, keys[1])
    # [prompt, row]: every token sees the whole prompt, so no token is left with nothing to see.
    k, v = (
      jnp.concatenate([jnp.broadcast_to(p, (R, *p.shape[1:])), r], axis=1)
      for p, r in zip(prompt_kv, row_kv, strict=True)
    )
    mask_RTS = jnp.concatenate([jnp.ones((R, T, P), bool), mask_RTT], axis=2)
    row_RTNH = attention(q_RTNH, k, v, mask_RTS)
    return (
      self.out(prompt_1PNH.reshape(P, -1), keys[2]),
      self.out(row_RTNH.reshape(R, T, -1), keys[3]),
    )


class Block(nnx.Module):
  """One layer, both streams."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.norm_attention = RMSNorm(c)
    self.attention = Attention(c, rngs=rngs)
    self.norm_mlp = RMSNorm(c)
    self.mlp = GatedMLP(c, rngs=rngs)
    self.rate = c.dropout

  def __call__(self, prompt_PD, x_RTD, position_RT, mask_RTT, key):
    def add(stream, update, update_key):
      return stream + dropout(update, self.rate, update_key)

    keys = split(key, 7)
    update_prompt, update_row = self.attention(
      self.norm_attention(prompt_PD), self.norm_attention(x_RTD), position_RT, mask_RTT, keys[4]
    )
    prompt_PD, x_RTD = add(prompt_PD, update_prompt, keys[0]), add(x_RTD, update_row, keys[1])
    prompt_PD = add(prompt_PD, self.mlp(self.norm_mlp(prompt_PD), keys[5]), keys[2])
    x_RTD = add(x_RTD, self.mlp(self.norm_mlp(x_RTD), keys[6]), keys[3])
    return prompt_PD, x_RTD


class Llama(nnx.Module):
  """A stack of blocks and the final norm. In and out: prompt [P, D] and rows [R, T, D]."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.blocks = nnx.vmap(lambda r: Block(c, rngs=r))(rngs.split(c.layers))
    self.norm = RMSNorm(c)
    self.config = c

  @classmethod
  def unfilled(cls, c: LlamaConfig, *, rngs: nnx.Rngs) -> "Llama":
    """Weights are shapes until a checkpoint fills them, so nothing of their size is allocated
    twice; LoRA is drawn."""
    key = rngs.params()
    llama = nnx.eval_shape(lambda: cls(c, rngs=nnx.Rngs(0)))
    if c.lora is not None:
      draw = jax.jit(lambda key: nnx.state(cls(c, rngs=nnx.Rngs(key)), LoRAParam))
      nnx.update(llama, draw(key))
    return llama

  def __call__(
    self,
    prompt_PD: jax.Array,
    x_RTD: jax.Array,
    position_RT: jax.Array,
    mask_RTT: jax.Array,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """position_RT counts from the end of the prompt; mask_RTT as `attention.visible` makes it."""
    prompt_PD, x_RTD = (x.astype(self.config.compute) for x in (prompt_PD, x_RTD))
    graph, stacked = nnx.split(self.blocks)
    keys = None if key is None else jax.random.split(key, self.config.layers)

    def layer(streams, state_and_key):
      state, layer_key = state_and_key
      return nnx.merge(graph, state)(*streams, position_RT, mask_RTT, layer_key), None

    if self.config.remat == "layers":
      layer = jax.checkpoint(layer, prevent_cse=False)  # in a scan nothing can be shared anyway
    streams, _ = jax.lax.scan(layer, (prompt_PD, x_RTD), (stacked, keys), unroll=self.config.unroll)
    return tuple(self.norm(x).astype(jnp.float32) for x in streams)
