"""Our Llama against the one of Hugging Face transformers, with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.models.llama import Llama, LlamaConfig

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

C = LlamaConfig(layers=3, D=32, F=48, N=4, K=2, H=8, rope_theta=1234.0, norm_eps=3e-3)


def reference(ours: Llama):
  """A transformers model that holds our weights: [in, heads, width] becomes [heads * width, in]."""
  theirs = transformers.LlamaModel(
    transformers.LlamaConfig(
      vocab_size=8,
      hidden_size=C.D,
      intermediate_size=C.F,
      num_hidden_layers=C.layers,
      num_attention_heads=C.N,
      num_key_value_heads=C.K,
      head_dim=C.H,
      rms_norm_eps=C.norm_eps,
      rope_parameters={"rope_type": "default", "rope_theta": C.rope_theta},
      attn_implementation="eager",
    )
  ).eval()

  def put(parameter, value):
    parameter.data = torch.tensor(np.array(value, np.float32))

  blocks = ours.blocks
  for i, layer in enumerate(theirs.layers):
    attention, mlp = blocks.attention, blocks.mlp
    for name in ("q", "k", "v"):
      weight = getattr(attention, name).weight[...][i]
      put(getattr(layer.self_attn, f"{name}_proj").weight, weight.reshape(C.D, -1).T)
    put(layer.self_attn.o_proj.weight, attention.out.weight[...][i].T)
    for name in ("gate", "up", "down"):
      put(getattr(layer.mlp, f"{name}_proj").weight, getattr(mlp, name).weight[...][i].T)
    put(layer.input_layernorm.weight, blocks.norm_attention.scale[...][i])
    put(layer.post_attention_layernorm.weight, blocks.norm_mlp.scale[...][i])
  put(theirs.norm.weight, ours.norm.scale[...])
  return theirs


def test_prompt_and_row_equal_one_causal_sequence_in_transformers():
  ours = Llama(C, rngs=nnx.Rngs(0))
  leaves, tree = jax.tree.flatten(nnx.state(ours))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  larger = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  nnx.update(
    ours, jax.tree.unflatten(tree, larger)
  )  # fresh weights are small: nothing would differ
  P, T = 3, 9
  x_SD = np.random.default_rng(0).normal(size=(P + T, C.D)).astype(np.float32)
  prompt_PD, row_RTD = ours(
    jnp.asarray(x_SD[:P]),
    jnp.asarray(x_SD[None, P:]),
    jnp.arange(T)[None],
    jnp.tri(T, dtype=bool)[None],
  )
  with torch.no_grad():
    expected = reference(ours)(inputs_embeds=torch.tensor(x_SD[None])).last_hidden_state[0].numpy()
  got = np.concatenate([prompt_PD, row_RTD[0]])
  np.testing.assert_allclose(got, expected, atol=2e-5)
