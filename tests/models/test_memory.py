"""Memory that training holds for the backward pass, by XLA's own count, and equal results.

Compares differences between numbers of layers, so memory that a step takes once does not count.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import Llama, LlamaConfig
from mmesid_jax.parallel.variables import LoRAParam

D, F = 256, 512
WEIGHTS = 4 * D * D + 3 * D * F  # of one layer
LLAMA = LlamaConfig(layers=2, D=D, F=F, N=4, K=4, H=64, lora=LoRAConfig(2, 4.0))


def gradient(c: LlamaConfig, T: int):
  """A function of the factors and the frozen rest, and both."""
  llama = Llama(c, rngs=nnx.Rngs(0))
  graph, factors, frozen = nnx.split(llama, LoRAParam, ...)
  factors = jax.tree.map(lambda x: x + 0.01, factors)  # B is zero at first, and A has no gradient

  def loss(factors, frozen):
    x_TD = jnp.sin(jnp.arange(T * D, dtype=jnp.float32)).reshape(1, T, D)
    rows = x_TD, jnp.arange(T)[None], jnp.tri(T, 2 + T, 2, dtype=bool)[None]
    return (nnx.merge(graph, factors, frozen)(x_TD[0, :2], *rows) ** 2).mean()

  return jax.jit(jax.grad(loss)), factors, frozen


def bytes_a_layer(T: int, **changes) -> float:
  def held(layers: int) -> int:
    step, *state = gradient(dataclasses.replace(LLAMA, layers=layers, **changes), T)
    return step.lower(*state).compile().memory_analysis().temp_size_in_bytes

  return (held(6) - held(2)) / 4


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_floats_of_quantized_layers_are_never_all_there(kind):
  assert bytes_a_layer(8, weights=kind) < 2 * WEIGHTS  # what they take in bfloat16


def test_remat_keeps_what_enters_a_layer_only():
  T = 128
  kept = bytes_a_layer(T, weights="float32", remat="layers")
  assert 4 * T * D <= kept < 0.2 * bytes_a_layer(T, weights="float32")


def test_keeping_products_lies_between():
  """Bytes of a layer's input, q, k, v, out, gate and up; the products of LoRA's factors are sums by
  then, and what `down` gives is the next layer's input."""
  T = 128
  kept = bytes_a_layer(T, weights="float32", remat="products")
  assert kept <= 1.1 * 4 * T * (5 * D + 2 * F)
  assert bytes_a_layer(T, weights="float32", remat="layers") < kept
  assert kept < 0.7 * bytes_a_layer(T, weights="float32")


@pytest.mark.parametrize("remat", ["products", "layers"])
def test_remat_changes_no_gradient(remat):
  step, *state = gradient(LLAMA, 16)
  again, *_ = gradient(dataclasses.replace(LLAMA, remat=remat), 16)
  pairs = zip(jax.tree.leaves(step(*state)), jax.tree.leaves(again(*state)), strict=True)
  for ours, expected in pairs:
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-9)
