"""Llama blocks over shared-prefix rows: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

One stream of tokens passes through the layers, X = P + R T of them: the prompt, once a step, and
behind it the rows, whose tokens all see the prompt. Where a mesh cuts the rows into G groups, each
has a stream of its own, prompt included, X = P + R/G T. Layers are stacked on axis 0 and scanned.
Sources: Touvron et al. 2023; Hugging Face's conventions (half-split rotation, unscaled q), so
weights carry over.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.layers.attention import attention, groups
from mmesid_jax.models.layers.linear import dropout, split
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.layers.projection import PRODUCT, Projection
from mmesid_jax.parallel.sharding import constrain
from mmesid_jax.parallel.variables import LoRAParam, Pretrained

KEPT = {  # remat -> what is kept of a layer beside its input
  "products": lambda: jax.checkpoint_policies.save_only_these_names(PRODUCT),
  "layers": lambda: jax.checkpoint_policies.nothing_saveable,
}


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
  remat: "none" keeps every activation for the backward pass; "products" keeps what enters a layer
  and what its projections give; "layers" keeps what enters a layer, and the rest is computed again.
  unroll: layers that the compiler sees at once in the scan over them. attention: its `kind`.
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
  attention: str = "auto"
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


def rotate(x_GXNH: jax.Array, position_GX: jax.Array, frequency: np.ndarray) -> jax.Array:
  """Rotary position embedding, half-split as in Hugging Face; angles in float32."""
  angle = position_GX[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = jnp.split(x_GXNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)
  return rotated.astype(x_GXNH.dtype)


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
  """Grouped-query attention of the prompt to itself and of the rows to the prompt and to what
  their mask lets them see."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.q = c.projection("q", rngs)
    self.k = c.projection("k", rngs)
    self.v = c.projection("v", rngs)
    self.out = c.projection("out", rngs)
    self.config = c

  def __call__(self, x_GXD: jax.Array, position_GX: jax.Array, mask_RTS: jax.Array, key):
    R, T, S = mask_RTS.shape
    (G, X, _), P = x_GXD.shape, S - T
    keys, frequency = split(key, 4), frequencies(self.config)
    q = rotate(self.q(x_GXD, keys[0]), position_GX, frequency)
    k = rotate(self.k(x_GXD, keys[1]), position_GX, frequency)
    v = self.v(x_GXD, keys[2])
    prompt = (x[:, :P] for x in (q, k, v))
    prompt_GPNH = attention(*prompt, jnp.tri(P, dtype=bool)[None])  # too short for a kernel to pay

    def rows(x_GXKH):
      return constrain(x_GXKH[:, P:].reshape(R, T, *x_GXKH.shape[2:]), "batch", None, "heads", None)

    def with_prompt(x_GXKH):
      heads = x_GXKH.shape[2:]
      prompt = jnp.broadcast_to(x_GXKH[:, None, :P], (G, R // G, P, *heads)).reshape(R, P, *heads)
      return jnp.concatenate([prompt, rows(x_GXKH)], axis=1)

    row_RTNH = attention(rows(q), with_prompt(k), with_prompt(v), mask_RTS, self.config.attention)
    width = self.config.N * self.config.H
    both = [prompt_GPNH.reshape(G, P, width), row_RTNH.reshape(G, X - P, width)]
    return self.out(jnp.concatenate(both, axis=1), keys[3])


class Block(nnx.Module):
  """One layer."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.norm_attention = RMSNorm(c)
    self.attention = Attention(c, rngs=rngs)
    self.norm_mlp = RMSNorm(c)
    self.mlp = GatedMLP(c, rngs=rngs)
    self.rate = c.dropout

  def __call__(self, x_GXD, position_GX, mask_RTS, key):
    keys = split(key, 4)
    update_GXD = self.attention(self.norm_attention(x_GXD), position_GX, mask_RTS, keys[0])
    x_GXD = x_GXD + dropout(update_GXD, self.rate, keys[1])
    x_GXD = x_GXD + dropout(self.mlp(self.norm_mlp(x_GXD), keys[2]), self.rate, keys[3])
    return constrain(x_GXD, "batch", None, None)


class Llama(nnx.Module):
  """A stack of blocks and the final norm."""

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
    mask_RTS: jax.Array,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """float32 [G, P + R/G T, D], in every group the prompt's tokens first. position_RT counts from
    the end of the prompt; mask_RTS [R, T, P + T] as `attention.visible` makes it."""
    G, (P, D) = groups(len(x_RTD)), prompt_PD.shape
    prompt_GPD = jnp.broadcast_to(prompt_PD, (G, P, D))
    x_GXD = jnp.concatenate([prompt_GPD, x_RTD.reshape(G, -1, D)], axis=1)
    x_GXD = constrain(x_GXD.astype(self.config.compute), "batch", None, None)
    prompt_GP = jnp.broadcast_to(jnp.arange(P), (G, P))
    position_GX = jnp.concatenate([prompt_GP, P + position_RT.reshape(G, -1)], axis=1)
    graph, stacked = nnx.split(self.blocks)
    keys = None if key is None else jax.random.split(key, self.config.layers)

    def layer(x_GXD, state_and_key):
      state, layer_key = state_and_key
      return nnx.merge(graph, state)(x_GXD, position_GX, mask_RTS, layer_key), None

    if self.config.remat != "none":
      # In a scan nothing can be shared anyway.
      layer = jax.checkpoint(layer, policy=KEPT[self.config.remat](), prevent_cse=False)
    x_GXD, _ = jax.lax.scan(layer, x_GXD, (stacked, keys), unroll=self.config.unroll)
    return self.norm(x_GXD).astype(jnp.float32)
