"""Storage of frozen weights: floats, or 8- or 4-bit codes with one scale per block.

Blocks run along the input axis, so a weight that is sharded on either axis can be quantized shard
by shard. Source of NF4, the 16 quantiles of a normal distribution: Dettmers et al. 2023 (QLoRA).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.parallel.variables import Pretrained

WEIGHT_KINDS = ("float32", "bfloat16", "int8", "nf4")
BLOCK = 64  # number of weights that share a scale
NF4 = np.array(
  [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
  ],
  np.float32,
)  # fmt: skip
NF4_EDGES = (NF4[1:] + NF4[:-1]) / 2  # between two levels the nearest one changes halfway


class QuantizedWeight(nnx.Module):
  """A weight [d_in, *d_out] as codes, and per column the largest magnitude of every BLOCK rows.

  int8: value = code / 127 * scale, 1.03 bytes per weight. nf4: two 4-bit codes per byte (the even
  row in the high half), value = NF4[code] * scale, 0.53 bytes per weight. Scales are bfloat16,
  which saves as much as a second quantization of float32 scales would. Raises ValueError when d_in
  is not a multiple of BLOCK.
  """

  def __init__(self, shape: tuple[int, ...], kind: str):
    d_in, *d_out = shape
    if d_in % BLOCK:
      raise ValueError(f"{kind} needs an input width that is a multiple of {BLOCK}, got {d_in}")
    rows, dtype = (d_in, jnp.int8) if kind == "int8" else (d_in // 2, jnp.uint8)
    self.codes = Pretrained(jnp.zeros((rows, *d_out), dtype))
    self.scale = Pretrained(jnp.zeros((d_in // BLOCK, *d_out), jnp.bfloat16))
    self.kind = kind


def dequantize_weight(codes: jax.Array, scale: jax.Array, kind: str) -> jax.Array:
  """Returns float32 [d_in, *d_out] from the codes and scales of `quantize_weight`."""
  if kind == "int8":
    values = codes.astype(jnp.float32) / 127
  else:
    pairs = jnp.stack([codes >> 4, codes & 15], axis=1)  # [d_in / 2, 2, *d_out]
    values = jnp.asarray(NF4)[pairs.reshape(-1, *codes.shape[1:])]
  blocks = values.reshape(len(scale), BLOCK, *codes.shape[1:])
  return (blocks * scale.astype(jnp.float32)[:, None]).reshape(values.shape)


@functools.partial(jax.jit, static_argnames="kind")
def quantize_weight(weight: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
  """Codes and bfloat16 scales of a weight [d_in, *d_out]; d_in is a multiple of BLOCK."""
  d_in, *d_out = weight.shape
  blocks = weight.astype(jnp.float32).reshape(d_in // BLOCK, BLOCK, *d_out)
  scale = jnp.abs(blocks).max(axis=1).astype(jnp.bfloat16)
  divisor = jnp.maximum(scale.astype(jnp.float32), jnp.finfo(jnp.float32).tiny)[:, None]
  unit = (blocks / divisor).reshape(weight.shape)
  if kind == "int8":
    return jnp.clip(jnp.rint(unit * 127), -127, 127).astype(jnp.int8), scale
  codes = sum((unit > edge).astype(jnp.uint8) for edge in NF4_EDGES)
  return codes[0::2] << 4 | codes[1::2], scale


def vector_variable(x: jax.Array, weights: str) -> nnx.Variable:
  """A bias, or the scale of a norm, that starts as x: trained where weights are "trained", else
  frozen, in float32 beside float32 weights and in bfloat16 beside others; never as codes."""
  if weights == "trained":
    return nnx.Param(x)
  return Pretrained(x.astype("float32" if weights == "float32" else "bfloat16"))


def frozen_weight(shape: tuple[int, ...], kind: str) -> Pretrained | QuantizedWeight:
  """A frozen weight [d_in, *d_out] stored as `kind`; zero until a checkpoint fills it."""
  if kind in ("int8", "nf4"):
    return QuantizedWeight(shape, kind)
  return Pretrained(jnp.zeros(shape, kind))
