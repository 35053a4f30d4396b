"""Quantised weights against float64 arithmetic, and what they cost."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.models.layers.weight_quantization import (
  BLOCK,
  NF4,
  QuantizedWeight,
  dequantize_weight,
  quantize_weight,
)

RNG = np.random.default_rng(0)
WEIGHT = (RNG.normal(size=(4 * BLOCK, 6, 5)) * RNG.gamma(2, size=(1, 6, 5))).astype(np.float32)


def nearest(weight: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """Every weight as the nearest level times its block's largest magnitude (bfloat16), in a loop."""
  out = np.empty(weight.shape)
  for first in range(0, len(weight), BLOCK):
    block = weight[first : first + BLOCK].astype(np.float64)
    scale = np.asarray(jnp.asarray(np.abs(block).max(0), jnp.bfloat16), np.float64)
    distance = np.abs(block[None] / scale - levels.reshape(-1, *[1] * block.ndim))
    out[first : first + BLOCK] = levels[distance.argmin(0)] * scale
  return out


@pytest.mark.parametrize(
  "kind, levels", [("int8", np.arange(-127, 128) / 127), ("nf4", NF4.astype(np.float64))]
)
def test_every_weight_becomes_its_nearest_level(kind, levels):
  codes, scale = quantize_weight(jnp.asarray(WEIGHT), kind)
  got = dequantize_weight(codes, scale, kind)
  # half-way between two levels float32 and float64 may choose differently, at the same distance
  ours, best = np.abs(got - WEIGHT), np.abs(nearest(WEIGHT, levels) - WEIGHT)
  np.testing.assert_allclose(ours, best, atol=1e-5 * np.abs(WEIGHT).max())


@pytest.mark.parametrize("kind, error, size", [("int8", 0.0065, 1.03), ("nf4", 0.10, 0.53)])
def test_error_and_bytes_a_weight(kind, error, size):
  """Relative to the weights' own norm, for normal weights; figures of the README."""
  weight = RNG.normal(size=(1024, 64)).astype(np.float32)
  codes, scale = quantize_weight(jnp.asarray(weight), kind)
  difference = np.asarray(dequantize_weight(codes, scale, kind)) - weight
  relative = np.linalg.norm(difference) / np.linalg.norm(weight)
  assert 0.5 * error < relative < error
  assert (codes.nbytes + scale.nbytes) / weight.size == pytest.approx(size, abs=0.005)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_zeros_and_extremes(kind):
  weight = np.zeros((BLOCK, 3), np.float32)
  weight[0, 1], weight[1, 1], weight[5, 2] = 3.0, -3.0, 1e-30
  got = np.asarray(dequantize_weight(*quantize_weight(jnp.asarray(weight), kind), kind))
  np.testing.assert_allclose(got, weight, rtol=4e-3)


def test_blocks_must_fit():
  with pytest.raises(ValueError, match="multiple of 64, got 65"):
    QuantizedWeight((65, 8), "nf4")
