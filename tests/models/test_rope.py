"""Rotary positions against complex numbers in float64."""

import dataclasses

import numpy as np

from mmesid_jax.models.llama import LlamaConfig, RopeScaling, apply_rope, rope_frequencies

H, BASE = 8, 100.0
CONFIG = LlamaConfig(layers=1, D=16, F=16, N=2, K=2, H=H, rope_theta=BASE)


def test_pairs_are_turned_by_their_position_times_their_frequency():
  """Entry h and entry h + H / 2 of a head are the two parts of a complex number."""
  x = np.random.default_rng(0).normal(size=(2, 5, 3, H)).astype(np.float32)
  position = np.array([[0, 1, 2, 9, 40], [3, 3, 0, 7, 100]])
  found = apply_rope(x, position, rope_frequencies(CONFIG))
  frequency = BASE ** -(np.arange(H // 2) / (H // 2))
  turned = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * np.exp(
    1j * position[:, :, None, None] * frequency
  )
  expected = np.concatenate([turned.real, turned.imag], axis=-1)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_long_waves_are_stretched_and_short_ones_stay():
  """Waves of 6.3, 19.9, 62.8 and 199 tokens; stretched above 100 / 1, as they are below 100 / 5."""
  scaling = RopeScaling(
    factor=8.0, low_frequency_factor=1.0, high_frequency_factor=5.0, original_length=100
  )
  plain = rope_frequencies(CONFIG)
  found = rope_frequencies(dataclasses.replace(CONFIG, rope_scaling=scaling))
  np.testing.assert_allclose(found[:2], plain[:2], rtol=1e-6)
  np.testing.assert_allclose(found[3], plain[3] / 8, rtol=1e-6)
  share = (100 * plain[2] / (2 * np.pi) - 1) / (5 - 1)
  np.testing.assert_allclose(found[2], plain[2] * (share + (1 - share) / 8), rtol=1e-5)
