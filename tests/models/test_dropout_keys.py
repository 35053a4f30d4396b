"""Every layer draws a dropout mask of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.llama import Llama, LlamaConfig
from mmesid_jax.models.sasrec import SASRec

D = 256


def levels(x_TD) -> list[int]:
  """How many values each row has that are at least .1 apart."""
  return (1 + (np.diff(np.sort(x_TD)) > 0.1).sum(1)).tolist()


def test_sasrec_adds_up_independent_masks():
  """Two layers add their biases, ones, twice each, and half of them is dropped: sums are 0 to 4
  times 1 / (1 - rate). If two masks were the same, there would be fewer sums."""
  model = SASRec(3, D=D, layers=2, heads=1, positions=4, rate=0.5, rngs=nnx.Rngs(0))
  for _, weight in nnx.to_flat_state(nnx.state(model)):
    weight[...] = jnp.zeros(weight.shape)
  for block in model.blocks:
    block.out.bias[...] = block.down.bias[...] = jnp.ones(D)
  model.norm.scale[...] = jnp.ones(D)
  (batch,) = batch_sequences([np.array([1, 2, 3, 1])], Layout(1, 4, 4))
  assert levels(model.hidden(batch, jax.random.key(0))[1:4]) == [5, 5, 5]


@pytest.mark.parametrize("silent", ["attention", "mlp"])
def test_llama_adds_up_independent_masks(silent):
  """On a stream of large equal values every layer adds the same small vector, or where it is
  dropped nothing: of three layers 0 to 3 times."""
  config = LlamaConfig(layers=3, D=D, F=8, N=1, K=1, H=8, dropout=0.5)
  model = Llama(config, rngs=nnx.Rngs(0))
  for _, weight in nnx.to_flat_state(nnx.state(model.blocks)):
    weight[...] = jnp.ones(weight.shape)
  part = model.blocks.attention.out if silent == "attention" else model.blocks.mlp.down
  part.weight[...] = jnp.zeros(part.weight.shape)
  other = model.blocks.mlp.down if silent == "attention" else model.blocks.attention.out
  # of a stream of ones after the norm: v is D in each of 8 places, so are gate and up
  into_other = D if silent == "mlp" else float(jax.nn.silu(jnp.float32(D))) * D
  other.weight[...] = jnp.full(other.weight.shape, 1 / (8 * into_other))
  large = 100.0
  x_RTD = jnp.full((1, 3, D), large)
  given = jnp.full((1, D), large), x_RTD, jnp.arange(3)[None], jnp.tri(3, 4, k=1, dtype=bool)[None]
  x_TD = model(*given, jax.random.key(0))[0]
  assert levels(x_TD * large) == [4, 4, 4, 4]
