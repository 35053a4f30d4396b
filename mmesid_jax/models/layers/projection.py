"""A projection of the backbone: trained or frozen, dense or quantized, with or without LoRA."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mmesid_jax.models.layers.lora import LoRA, LoRAConfig
from mmesid_jax.models.layers.weight_quantization import (
  QuantizedWeight,
  dequantize_weight,
  frozen_weight,
  vector_variable,
)
from mmesid_jax.parallel.mesh import target_platform

# Standard deviation of initial weights, Hugging Face's initializer_range: what a layer adds at
# first is as small as the item vectors that it is added to, so it does not dominate them.
INIT_STD = 0.02
PRODUCT = "product"  # name of projections' outputs for remat policies


class Projection(nnx.Module):
  """y = x W (+ b) (+ LoRA) over the last axis; W [d_in, *d_out]; computed in the dtype of x.

  weights: "trained" is an nnx.Param, float32, normal with std INIT_STD. Any of WEIGHT_KINDS is
  frozen, and zero until a checkpoint fills it. bias: b [*d_out], trained or frozen as W is, starts
  at zero.
  """

  def __init__(
    self,
    d_in: int,
    d_out: int | tuple[int, ...],
    *,
    weights: str,
    bias: bool = False,
    lora: LoRAConfig | None,
    rngs: nnx.Rngs,
  ):
    d_out = d_out if isinstance(d_out, tuple) else (d_out,)
    shape = (d_in, *d_out)
    if weights == "trained":
      self.weight = nnx.Param(jax.random.normal(rngs.params(), shape) * INIT_STD)
    else:
      self.weight = frozen_weight(shape, weights)
    self.bias = vector_variable(jnp.zeros(d_out), weights) if bias else None
    self.lora = LoRA(d_in, d_out, lora, rngs=rngs) if lora else None

  def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    shape, x = x.shape[:-1], x.reshape(-1, x.shape[-1])  # one matrix: XLA would transpose two axes
    weight = self.weight
    if isinstance(weight, QuantizedWeight):
      y = _quantized_product(x, weight.codes[...], weight.scale[...], weight.kind)
    else:
      y = product(x, weight[...].astype(x.dtype))
    y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
    y = y if self.lora is None else y + self.lora(x, key)
    return checkpoint_name(y.reshape(*shape, *y.shape[1:]), PRODUCT)


@functools.partial(jax.checkpoint, static_argnums=3)
def _quantized_product(x: jax.Array, codes: jax.Array, scale: jax.Array, kind: str) -> jax.Array:
  """x W for a quantized W.

  Checkpointed, so the backward pass dequantizes W again: storing the floats of all layers for it
  would take the memory that quantization saves.
  """
  return product(x, dequantize_weight(codes, scale, kind).astype(x.dtype))


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
  """x W, [J, *d_out], for x [J, d_in] and W [d_in, *d_out] of one dtype, which the result has too.

  XLA multiplies bfloat16 on CPUs with their matrix units (Intel's AMX) only where it returns
  float32, which takes a third of the time; so there the result is rounded afterwards.
  """
  if x.dtype != jnp.bfloat16 or target_platform() != "cpu":
    return jnp.tensordot(x, weight, axes=1)
  y = _rounded_product(x, weight.reshape(len(weight), -1))
  return y.reshape(len(x), *weight.shape[1:])


@jax.custom_vjp
def _rounded_product(x_JA: jax.Array, weight_AB: jax.Array) -> jax.Array:
  return _dot(x_JA, weight_AB, 1, 0)


def _dot(a: jax.Array, b: jax.Array, axis_of_a: int, axis_of_b: int) -> jax.Array:
  axes = (((axis_of_a,), (axis_of_b,)), ((), ()))
  return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32).astype(a.dtype)


def _forward(x_JA, weight_AB):
  return _rounded_product(x_JA, weight_AB), (x_JA, weight_AB)


def _backward(saved, gradient_JB):
  x_JA, weight_AB = saved
  return _dot(gradient_JB, weight_AB, 1, 1), _dot(x_JA, gradient_JB, 0, 0)


_rounded_product.defvjp(_forward, _backward)
