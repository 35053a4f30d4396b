"""Finite scalar quantization against its definition in numpy."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.models.fsq import FiniteScalarQuantizer, coordinate_sizes
from mmesid_jax.models.residual_quantizer import QuantizerConfig

LEVELS, D = 3, 6


def make(codes=8):
  return FiniteScalarQuantizer(QuantizerConfig(LEVELS, codes), D, rngs=nnx.Rngs(0))


@pytest.fixture
def z():
  return np.random.default_rng(0).normal(size=(40, D)).astype(np.float32) * 2


def test_digits():
  assert coordinate_sizes(256) == (4, 4, 4, 4)
  assert coordinate_sizes(8) == (4, 2)
  assert coordinate_sizes(2) == (2,)
  for codes in (0, 1, 6, 255):
    with pytest.raises(ValueError, match="power of two"):
      coordinate_sizes(codes)


def test_codes_and_vectors(z):
  """Every coordinate goes to the nearest of its values; the code is its place in the grid."""
  fsq = make()
  found = fsq(z)
  entered = z @ np.asarray(fsq.enter.kernel[...]) + np.asarray(fsq.enter.bias[...])
  bounded = np.tanh(np.float64(entered).reshape(len(z), LEVELS, 2))
  grid = list(itertools.product(np.linspace(-1, 1, 4), np.linspace(-1, 1, 2)))
  code = np.abs(bounded[:, :, None] - np.array(grid)).argmin(2)  # a coordinate at a time
  digit = code[..., 0] // 2 * 2 + code[..., 1] % 2
  np.testing.assert_array_equal(found.code_BL, digit)
  values = np.array(grid)[digit].reshape(len(z), -1)
  np.testing.assert_allclose(
    found.quantized_BD, values @ np.asarray(fsq.leave.kernel[...]), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(found.quantized_BD + found.residual_BD, z, atol=1e-5)
  assert found.code_BL.dtype == np.int32 and found.loss == found.averaging == 0


def test_codebooks_add_up_to_the_quantized_vector(z):
  fsq = make(16)
  found, book = fsq(z), np.asarray(fsq.codebook_LCD)
  assert book.shape == (LEVELS, 16, D)
  summed = book[np.arange(LEVELS), np.asarray(found.code_BL)].sum(1)
  np.testing.assert_allclose(found.quantized_BD, summed, rtol=1e-4, atol=1e-5)


def test_gradient_passes_the_rounding(z):
  fsq = make()
  to_z = jax.grad(lambda z: fsq(z).quantized_BD.sum())(z)
  weight = np.asarray(fsq.leave.kernel[...]).sum(1)
  entered = z @ np.asarray(fsq.enter.kernel[...]) + np.asarray(fsq.enter.bias[...])
  expected = ((1 - np.tanh(entered) ** 2) * weight) @ np.asarray(fsq.enter.kernel[...]).T
  np.testing.assert_allclose(to_z, expected, rtol=1e-3, atol=1e-5)
