"""Llama blocks over shared-prefix rows: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Mistral, Qwen2 and Qwen3 are the same blocks with a sliding window, biases, or norms of heads.
One stream of J = P + R T tokens passes through the layers: the prompt, once per step, then the
rows, whose tokens all see the prompt. When a mesh divides the rows into G groups, each group has
its own stream and copy of the prompt, J = P + R/G T. Layers are stacked on axis 0 and scanned.
Sources: Touvron et al. 2023; Hugging Face's conventions (half-split rotation, unscaled q), so their
weights can be used.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.layers.attention import attention
from mmesid_jax.models.layers.linear import dropout, split_key
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.layers.projection import PRODUCT, Projection
from mmesid_jax.models.layers.weight_quantization import vector_variable
from mmesid_jax.models.packed_rows import group_count, window_mask
from mmesid_jax.parallel.sharding import constrain
from mmesid_jax.parallel.variables import LoRAParam

REMAT_POLICIES = {  # LlamaConfig.remat -> which of a layer's values, besides its input, are kept
  "products": lambda: jax.checkpoint_policies.save_only_these_names(PRODUCT),
  "layers": lambda: jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3.1's scaling of the rotation for longer texts; `original_length` is in tokens."""

  factor: float
  low_frequency_factor: float
  high_frequency_factor: float
  original_length: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Sizes and options of the backbone.

  Args:
    D, F, N, K, H: widths and numbers of heads, as in the legend of `mmesid_jax.models`.
    rope_theta: base of the rotation; rope_scaling: Llama 3.1's scaling of it, or None.
    norm_eps: added to the mean square in RMSNorm.
    qkv_bias: whether q, k and v have a bias, as in Qwen2.
    head_norms: whether heads of q and k have an RMSNorm before the rotation, as in Qwen3.
    window: a token sees only keys that are fewer than this many positions before it, as in Mistral;
      None = all before it.
    dropout: rate on what each half of a layer adds to the stream.
    weights: "trained", or how frozen weights are stored: one of `WEIGHT_KINDS`.
    compute: dtype of activations.
    remat: what is kept for the backward pass, the rest is recomputed. "none" keeps everything,
      "products" the inputs of layers and outputs of projections, "layers" the inputs of layers.
    unroll: number of layers in one iteration of the scan.
    attention: the `kind` of `attention`.
    lora: adapters of the projections, or None.
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
  qkv_bias: bool = False
  head_norms: bool = False
  window: int | None = None
  dropout: float = 0.0
  weights: str = "trained"
  compute: str = "float32"
  remat: str = "none"
  unroll: int = 1
  attention: str = "auto"
  lora: LoRAConfig | None = None

  @property
  def projections(self) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Projections of a block: name -> (input width, output shape)."""
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
  def weights_per_layer(self) -> int:
    """Number of weights in a block's projections, without LoRA."""
    return sum(d_in * math.prod(d_out) for d_in, d_out in self.projections.values())

  @property
  def parameters(self) -> int:
    """Number of weights in all blocks and norms, without embeddings and LoRA."""
    biases = (self.N + 2 * self.K) * self.H if self.qkv_bias else 0
    norms = 2 * self.D + (2 * self.H if self.head_norms else 0)
    return self.layers * (self.weights_per_layer + biases + norms) + self.D

  def projection(self, name: str, rngs: nnx.Rngs) -> Projection:
    """Builds a block's projection by name, with an adapter if it is among the LoRA targets."""
    d_in, d_out = self.projections[name]
    lora = self.lora if self.lora and name in self.lora.targets else None
    bias = self.qkv_bias and name in ("q", "k", "v")
    return Projection(d_in, d_out, weights=self.weights, bias=bias, lora=lora, rngs=rngs)


def rope_frequencies(c: LlamaConfig) -> np.ndarray:
  """Radians per position, float32 [H / 2]. Source: Su et al. 2021.

  With scaling, as in Llama 3.1: frequencies of waves longer than original_length /
  low_frequency_factor are divided by factor, those of waves shorter than original_length /
  high_frequency_factor stay, and between them the weight of the two is linear.
  """
  half = c.H // 2
  frequency = c.rope_theta ** -(np.arange(half) / half)
  if (s := c.rope_scaling) is not None:
    turns = s.original_length * frequency / (2 * np.pi)
    keep = (turns - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor)
    keep = np.clip(keep, 0, 1)
    frequency = frequency * (keep + (1 - keep) / s.factor)
  return frequency.astype(np.float32)


def apply_rope(x_GJNH: jax.Array, position_GJ: jax.Array, frequency: np.ndarray) -> jax.Array:
  """Applies rotary position embedding, half-split as in Hugging Face; angles in float32."""
  angle = position_GJ[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = jnp.split(x_GJNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)
  return rotated.astype(x_GJNH.dtype)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis; the division is in float32, the result has x's dtype.

  Source: Zhang and Sennrich 2019.
  """

  def __init__(self, c: LlamaConfig, width: int):
    self.scale = vector_variable(jnp.ones(width), c.weights)
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
    keys = split_key(key, 3)
    return self.down(jax.nn.silu(self.gate(x, keys[0])) * self.up(x, keys[1]), keys[2])


class Attention(nnx.Module):
  """Grouped-query attention: the prompt to itself, causally; the rows by their mask.

  Returns its output, and what the rows' tokens may see: keys and values [R, P + T, K, H].
  """

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.q = c.projection("q", rngs)
    self.k = c.projection("k", rngs)
    self.v = c.projection("v", rngs)
    self.out = c.projection("out", rngs)
    self.norm_q = RMSNorm(c, c.H) if c.head_norms else None
    self.norm_k = RMSNorm(c, c.H) if c.head_norms else None
    self.config = c

  def heads(self, x: jax.Array, position: jax.Array, keys) -> tuple[jax.Array, ...]:
    """q, k and v of tokens, [..., heads, H], rotated to their positions."""
    q, k, v = self.q(x, keys[0]), self.k(x, keys[1]), self.v(x, keys[2])
    if self.norm_q is not None:
      q, k = self.norm_q(q), self.norm_k(k)
    frequency = rope_frequencies(self.config)
    return apply_rope(q, position, frequency), apply_rope(k, position, frequency), v

  def __call__(self, x_GJD: jax.Array, position_GJ: jax.Array, mask_RTY: jax.Array, key):
    R, T, Y = mask_RTY.shape
    (G, J, _), P = x_GJD.shape, Y - T
    keys = split_key(key, 4)
    q, k, v = self.heads(x_GJD, position_GJ, keys)
    prompt = (x[:, :P] for x in (q, k, v))
    mask_PP = causal_mask(P, self.config.window)
    prompt_GPNH = attention(*prompt, mask_PP[None])  # too short for a faster kernel

    def rows(x_GJKH):
      return constrain(x_GJKH[:, P:].reshape(R, T, *x_GJKH.shape[2:]), "batch", None, "heads", None)

    def with_prompt(x_GJKH):
      heads = x_GJKH.shape[2:]
      prompt = jnp.broadcast_to(x_GJKH[:, None, :P], (G, R // G, P, *heads)).reshape(R, P, *heads)
      return jnp.concatenate([prompt, rows(x_GJKH)], axis=1)

    seen = with_prompt(k), with_prompt(v)
    row_RTNH = attention(rows(q), *seen, mask_RTY, self.config.attention)
    width = self.config.N * self.config.H
    both = [prompt_GPNH.reshape(G, P, width), row_RTNH.reshape(G, J - P, width)]
    return self.out(jnp.concatenate(both, axis=1), keys[3]), seen

  def extend(self, x_QZD, position_QZ, prefix, mask_QY, branch):
    """One more token for each of Z branches: its output [Q, Z, D], and the branch with it.

    prefix: keys and values [Q, Y, K, H] that all branches of a query see where mask_QY says so.
    branch: their own, [Q, Z, tokens, K, H] each, seen as far as the window goes. As in `attention`,
    products of q and k are added up in float32.
    """
    Q, Z, _ = x_QZD.shape
    c = self.config
    q, k, v = self.heads(x_QZD, position_QZ, (None,) * 3)
    branch = tuple(
      jnp.concatenate([old, new[:, :, None]], axis=2)
      for old, new in zip(branch, (k, v), strict=True)
    )
    q_QZKnH = q.reshape(Q, Z, c.K, c.N // c.K, c.H)
    f32 = jnp.float32
    to_prefix = jnp.einsum("qzknh,qykh->qknzy", q_QZKnH, prefix[0], preferred_element_type=f32)
    near = tuple(x[:, :, -c.window :] for x in branch) if c.window else branch
    to_branch = jnp.einsum("qzknh,qztkh->qknzt", q_QZKnH, near[0], preferred_element_type=f32)
    to_prefix = jnp.where(mask_QY[:, None, None, None], to_prefix, -jnp.inf)
    scores = jnp.concatenate([to_prefix, to_branch], axis=-1)
    weight = jax.nn.softmax(scores / math.sqrt(c.H), axis=-1).astype(v.dtype)
    Y = mask_QY.shape[1]
    seen = jnp.einsum("qknzy,qykh->qknzh", weight[..., :Y], prefix[1])
    seen += jnp.einsum("qknzt,qztkh->qknzh", weight[..., Y:], near[1])
    seen_QZKnH = seen.transpose(0, 3, 1, 2, 4)  # beams beside H are faster in the products
    return self.out(seen_QZKnH.reshape(Q, Z, c.N * c.H), None), branch


def causal_mask(P: int, window: int | None) -> jax.Array:
  """Bool mask [P, P]: a token sees itself and those before it, at most `window` in all."""
  mask_PP = jnp.tri(P, dtype=bool)
  return mask_PP if window is None else mask_PP & ~jnp.tri(P, k=-window, dtype=bool)


class Block(nnx.Module):
  """One layer: attention and MLP, each after RMSNorm and added to the stream."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.norm_attention = RMSNorm(c, c.D)
    self.attention = Attention(c, rngs=rngs)
    self.norm_mlp = RMSNorm(c, c.D)
    self.mlp = GatedMLP(c, rngs=rngs)
    self.rate = c.dropout

  def __call__(self, x_GJD, position_GJ, mask_RTY, key):
    keys = split_key(key, 4)
    attended = self.attention(self.norm_attention(x_GJD), position_GJ, mask_RTY, keys[0])
    update_GJD, seen = attended
    x_GJD = x_GJD + dropout(update_GJD, self.rate, keys[1])
    x_GJD = x_GJD + dropout(self.mlp(self.norm_mlp(x_GJD), keys[2]), self.rate, keys[3])
    return constrain(x_GJD, "batch", None, None), seen

  def extend(self, x_QZD, position_QZ, prefix, mask_QY, branch):
    """Adds one more token to each branch. The arguments are those of `Attention.extend`."""
    attended = self.attention.extend(
      self.norm_attention(x_QZD), position_QZ, prefix, mask_QY, branch
    )
    x_QZD = x_QZD + attended[0]
    return x_QZD + self.mlp(self.norm_mlp(x_QZD), None), attended[1]


class Llama(nnx.Module):
  """Stack of blocks and the final norm, without embeddings and output layer."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs):
    self.blocks = nnx.vmap(lambda r: Block(c, rngs=r))(rngs.split(c.layers))
    self.norm = RMSNorm(c, c.D)
    self.config = c

  @classmethod
  def with_abstract_weights(cls, c: LlamaConfig, *, rngs: nnx.Rngs) -> "Llama":
    """Builds a model to be filled from a checkpoint: weights are shapes, LoRA is initialized.

    So no memory is allocated for weights that would be overwritten.
    """
    key = rngs.params()
    llama = nnx.eval_shape(lambda: cls(c, rngs=nnx.Rngs(0)))
    if c.lora is not None:
      init_lora = jax.jit(lambda key: nnx.state(cls(c, rngs=nnx.Rngs(key)), LoRAParam))
      nnx.update(llama, init_lora(key))
    return llama

  def __call__(
    self,
    prompt_PD: jax.Array,
    x_RTD: jax.Array,
    position_RT: jax.Array,
    mask_RTY: jax.Array,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Returns hidden states, float32 [G, P + R/G T, D]; the prompt's tokens are first in a group.

    Args:
      prompt_PD: vectors of the prompt's tokens.
      x_RTD: vectors of the rows' tokens.
      position_RT: positions, counted from the end of the prompt.
      mask_RTY: bool [R, T, P + T], a `visibility_mask`; the window, if there is one, is added here.
      key: for dropout; None = none.
    """
    return self._read(prompt_PD, x_RTD, position_RT, mask_RTY, key)[0]

  def prefill(self, prompt_PD, x_RTD, position_RT, mask_RTY):
    """The states that a call without dropout returns, and what further tokens may see: keys and
    values, each [layers, R, P + T, K, H], the prompt's first."""
    return self._read(prompt_PD, x_RTD, position_RT, mask_RTY, None, keep=True)

  def _read(self, prompt_PD, x_RTD, position_RT, mask_RTY, key, keep: bool = False):
    G, (P, D) = group_count(len(x_RTD)), prompt_PD.shape
    if self.config.window is not None:
      mask_RTY = mask_RTY & window_mask(position_RT, P, self.config.window)
    prompt_GPD = jnp.broadcast_to(prompt_PD, (G, P, D))
    x_GJD = jnp.concatenate([prompt_GPD, x_RTD.reshape(G, -1, D)], axis=1)
    x_GJD = constrain(x_GJD.astype(self.config.compute), "batch", None, None)
    prompt_GP = jnp.broadcast_to(jnp.arange(P), (G, P))
    position_GJ = jnp.concatenate([prompt_GP, P + position_RT.reshape(G, -1)], axis=1)
    graph, stacked = nnx.split(self.blocks)
    keys = None if key is None else jax.random.split(key, self.config.layers)

    def apply_layer(x_GJD, state_and_key):
      state, layer_key = state_and_key
      x_GJD, seen = nnx.merge(graph, state)(x_GJD, position_GJ, mask_RTY, layer_key)
      return x_GJD, seen if keep else None

    if self.config.remat != "none":
      # prevent_cse is not needed: a scan's forward and backward loops share no expressions.
      policy = REMAT_POLICIES[self.config.remat]()
      apply_layer = jax.checkpoint(apply_layer, policy=policy, prevent_cse=False)
    x_GJD, seen = jax.lax.scan(apply_layer, x_GJD, (stacked, keys), unroll=self.config.unroll)
    return self.norm(x_GJD).astype(jnp.float32), seen

  def extend(
    self, x_QZD: jax.Array, position_Q: jax.Array, prefix: "Prefix", branch: tuple
  ) -> tuple[jax.Array, tuple]:
    """One more token for each of Z branches of every query; without dropout.

    Args:
      x_QZD: vectors of the tokens.
      position_Q: their positions, counted from the end of the prompt.
      prefix: what the branches of a query share.
      branch: keys and values of the tokens before it in the branch, [layers, Q, Z, tokens, K, H]
        each.

    Returns:
      States, float32 [Q, Z, D], and the branch with one more token.
    """
    position_QZ = prefix.prompt + jnp.broadcast_to(position_Q[:, None], x_QZD.shape[:2])
    mask_QY = prefix.mask_QY
    if self.config.window is not None:
      mask_QY = mask_QY & (position_Q[:, None] - prefix.position_QY < self.config.window)
    graph, stacked = nnx.split(self.blocks)

    def apply_layer(x_QZD, of_layer):
      state, seen, branch = of_layer
      of_query = tuple(x_RYKH[prefix.row_Q] for x_RYKH in seen)
      return nnx.merge(graph, state).extend(x_QZD, position_QZ, of_query, mask_QY, branch)

    x_QZD = x_QZD.astype(self.config.compute)
    x_QZD, branch = jax.lax.scan(apply_layer, x_QZD, (stacked, prefix.seen, branch))
    return self.norm(x_QZD).astype(jnp.float32), branch


class Prefix(NamedTuple):
  """The tokens that the branches of a query see before their own."""

  seen: tuple[jax.Array, jax.Array]  # keys and values of all rows, as `Llama.prefill` returns them
  row_Q: jax.Array  # the query's row
  mask_QY: jax.Array  # bool, which of the prompt's and the row's tokens it sees
  position_QY: jax.Array  # their positions, counted from the end of the prompt
  prompt: int  # number of tokens of the prompt
