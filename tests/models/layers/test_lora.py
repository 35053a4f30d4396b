"""Values of an adapter with dropout on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.config.schema import PROJECTIONS
from mmesid_jax.models.layers.lora import LoRA, LoRAConfig
from mmesid_jax.models.llama import Llama, LlamaConfig


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_acts_on_the_inputs_of_an_adapter(rate):
  """With ones everywhere the output counts the inputs that are kept."""
  width, alpha = 4096, 6.0
  config = LoRAConfig(rank=2, alpha=alpha, dropout=rate)
  lora = LoRA(width, (3,), config, rngs=nnx.Rngs(0))
  lora.a[...], lora.b[...] = jnp.ones((width, 2)), jnp.ones((2, 3))
  x = jnp.ones((5, width))
  np.testing.assert_allclose(lora(x), 2 * width * alpha / 2)
  kept = lora(x, jax.random.key(0)) / alpha * (1 - rate)
  np.testing.assert_allclose(kept, jnp.round(kept), atol=0.1)
  assert len(set(np.round(kept[:, 0]).tolist())) > 1  # each token has its own mask
  assert (jnp.abs(kept - width * (1 - rate)) < 5 * (width * rate * (1 - rate)) ** 0.5).all()
  np.testing.assert_array_equal(kept[:, :1].repeat(3, 1), kept)  # but all outputs share it


@pytest.mark.parametrize("name", PROJECTIONS)
def test_every_projection_with_an_adapter_drops_its_inputs(name):
  lora = LoRAConfig(rank=2, alpha=4.0, dropout=0.5, targets=(name,))
  model = Llama(LlamaConfig(layers=1, D=8, F=8, N=2, K=1, H=4, lora=lora), rngs=nnx.Rngs(0))
  for path, weight in nnx.to_flat_state(nnx.state(model)):
    if path[-1] == "b":
      weight[...] = jnp.ones(weight.shape)
  x_RTD = jax.random.normal(jax.random.key(0), (1, 4, 8))
  given = jnp.zeros((1, 8)), x_RTD, jnp.arange(4)[None], jnp.tri(4, 5, k=1, dtype=bool)[None]
  plain = model(*given)
  dropped, other = (model(*given, jax.random.key(n)) for n in range(2))
  assert not np.allclose(plain, dropped) and not np.allclose(dropped, other)
