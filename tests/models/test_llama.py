"""The blocks of every family against numpy in float64, token by token and head by head."""

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import FAMILIES
from flax import nnx

from mmesid_jax.models.llama import Llama, LlamaConfig

SIZES = {"layers": 2, "D": 12, "F": 20, "N": 4, "K": 2, "H": 6, "rope_theta": 50.0}
ALL = {"window": 5, "qkv_bias": True, "head_norms": True}


def random_llama(parts) -> Llama:
  """Every parameter random: norms are not 1, biases not 0."""
  llama = Llama(LlamaConfig(**SIZES, **parts), rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  for path, parameter in nnx.to_flat_state(nnx.state(llama)):
    start = 1.0 if path[-1] == "scale" else 0.0
    parameter.set_value(jnp.asarray(start + 0.4 * rng.normal(size=parameter.shape), jnp.float32))
  return llama


def states_in_numpy(llama: Llama, x_XD: np.ndarray) -> np.ndarray:
  """Hidden states of one sequence, by the formulas of the papers."""
  c = llama.config

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * scale

  def rotate(x_H, place):
    frequency = c.rope_theta ** -(np.arange(c.H // 2) / (c.H // 2))
    z = (x_H[: c.H // 2] + 1j * x_H[c.H // 2 :]) * np.exp(1j * place * frequency)
    return np.concatenate([z.real, z.imag])

  def part(module, i, name="weight"):
    return np.asarray(getattr(module, name)[...][i], np.float64)

  def project(module, i, x):
    y = np.tensordot(x, part(module, i), axes=1)
    return y if module.bias is None else y + part(module, i, "bias")

  x_XD = x_XD.astype(np.float64)
  for i in range(c.layers):
    attention, mlp = llama.blocks.attention, llama.blocks.mlp
    y_XD = norm(x_XD, part(llama.blocks.norm_attention, i, "scale"))
    q, k, v = (project(getattr(attention, name), i, y_XD) for name in "qkv")
    if c.head_norms:
      q, k = (
        norm(q, part(attention.norm_q, i, "scale")),
        norm(k, part(attention.norm_k, i, "scale")),
      )
    seen = np.zeros((len(x_XD), c.N, c.H))
    for place in range(len(x_XD)):
      first = 0 if c.window is None else max(0, place - c.window + 1)
      for head in range(c.N):
        of = head // (c.N // c.K)
        query = rotate(q[place, head], place)
        keys = np.stack([rotate(k[j, of], j) for j in range(first, place + 1)])
        weight = np.exp(keys @ query / np.sqrt(c.H))
        seen[place, head] = weight / weight.sum() @ v[first : place + 1, of]
    x_XD = x_XD + project(attention.out, i, seen.reshape(len(x_XD), -1))
    y_XD = norm(x_XD, part(llama.blocks.norm_mlp, i, "scale"))
    gate = project(mlp.gate, i, y_XD)
    x_XD = x_XD + project(mlp.down, i, gate / (1 + np.exp(-gate)) * project(mlp.up, i, y_XD))
  return norm(x_XD, np.asarray(llama.norm.scale[...], np.float64))


@pytest.mark.parametrize("parts", [*FAMILIES.values(), ALL], ids=[*FAMILIES, "all parts"])
@pytest.mark.parametrize("prompt", [1, 8])
def test_states_equal_numpy(parts, prompt):
  llama = random_llama(parts)
  x_XD = np.random.default_rng(1).normal(size=(17, llama.config.D)).astype(np.float32)
  T = len(x_XD) - prompt
  (found_XD,) = llama(
    jnp.asarray(x_XD[:prompt]),
    jnp.asarray(x_XD[None, prompt:]),
    jnp.arange(T)[None],
    jnp.tri(T, prompt + T, prompt, dtype=bool)[None],
  )
  np.testing.assert_allclose(found_XD, states_in_numpy(llama, x_XD), atol=1e-4)


def test_a_model_without_a_checkpoint_has_llama_s_parameters_only():
  """And draws its weights from the same keys as one that had biases and norms of heads."""
  plain = Llama(LlamaConfig(**SIZES), rngs=nnx.Rngs(3))
  other = Llama(LlamaConfig(**SIZES, **ALL), rngs=nnx.Rngs(3))
  found, more = (dict(nnx.to_flat_state(nnx.state(x))) for x in (plain, other))
  assert {path[-2:] for path in more.keys() - found.keys()} == {
    *((name, "bias") for name in "qkv"),
    *(("norm_q", "scale"), ("norm_k", "scale")),
  }
  for path, x in found.items():
    np.testing.assert_array_equal(x[...], more[path][...])
