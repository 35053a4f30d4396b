"""The PyTorch step that the benchmark of the semantic-ID stage compares with is the same step."""

import importlib

import numpy as np
import optax
import pytest
from flax import nnx

from mmesid_jax.config import default_config
from mmesid_jax.losses.semantic_id_loss import semantic_id_loss
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.residual_quantizer import QuantizerConfig
from mmesid_jax.stages.item_batches import FeatureTables
from mmesid_jax.training import optimizer
from mmesid_jax.training.step import initial_state, make_step

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
torch_mm_rqvae = importlib.import_module("torch_mm_rqvae")  # of benchmarks/; it imports torch

WIDTHS = {"collaborative": 6, "text": 9, "visual": 7}
OPTIONS = {
  "reconstruction": "both",
  "bandwidths": (0.5, 0.1),
  "alignment": "info_nce",
  "temperature": 0.1,
  "reconstruction_weight": 3.0,
  "quantization_weight": 1.0,
  "alignment_weight": 0.5,
}


def model(epsilon: float = 0.0) -> MMRQVAE:
  config = QuantizerConfig(3, 8, learning="gradient", sinkhorn_epsilon=epsilon)
  return MMRQVAE(WIDTHS, hidden=(16, 12), D=8, quantizer=config, rngs=nnx.Rngs(0))


def features(batch: int = 64) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {m: rng.normal(1, 1, (batch, V)).astype(np.float32) for m, V in WIDTHS.items()}


@pytest.mark.parametrize("reconstruction", ["mmd", "mse", "both"])
@pytest.mark.parametrize("epsilon", [0.0, 0.003])
@pytest.mark.parametrize("distances", ["gram", "tensor"])
def test_loss_and_gradients_are_ours(distances, epsilon, reconstruction):
  ours, x = model(epsilon), features()
  options = OPTIONS | {"reconstruction": reconstruction}
  theirs = torch_mm_rqvae.MMRQVAE(ours)

  @nnx.jit
  def our_loss_and_gradient(net):
    return nnx.value_and_grad(lambda net: semantic_id_loss(net, x, **options)[0])(net)

  value, gradient = our_loss_and_gradient(ours)
  found = torch_mm_rqvae.loss(
    theirs,
    {m: torch.from_numpy(x_BV) for m, x_BV in x.items()},
    distances=torch_mm_rqvae.DISTANCES[distances],
    **options,
  )
  found.backward()
  np.testing.assert_allclose(found.item(), value, rtol=1e-5)
  expected = torch_mm_rqvae.named_like_torch(gradient)
  got = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
  assert got.keys() == expected.keys() and len(got) == 3 * (6 + 6 + 1)
  for name, want in expected.items():
    assert np.abs(want).max() > 0, name
    np.testing.assert_allclose(got[name], want, atol=1e-4 * np.abs(want).max(), err_msg=name)


def test_steps_are_ours():
  """Features gathered by item id, clipping, decay of all but biases, AdamW."""
  config = default_config().collaborative.optimizer
  config.update(learning_rate=3e-3, weight_decay=3.0, clip=0.5)
  ours, tables = model(), features(batch=50)
  theirs = torch_mm_rqvae.MMRQVAE(ours)
  torch_step = torch_mm_rqvae.make_step(
    theirs,
    {m: torch.from_numpy(x_IV) for m, x_IV in tables.items()},
    config,
    distances=torch_mm_rqvae.gram,
    **OPTIONS,
  )
  adamw = optax.chain(  # optimizer.adamw without its schedule
    optax.clip_by_global_norm(config.clip),
    optax.adamw(config.learning_rate, weight_decay=3.0, mask=optimizer.decay_mask),
  )
  graph, params, frozen = nnx.split(FeatureTables(ours, tables), nnx.Param, ...)

  def loss(model, item_B, key):
    total, parts = semantic_id_loss(model.model, model.features(item_B), **OPTIONS)
    return (total, 1.0), parts

  step, state = make_step(loss, adamw, graph, seed=0), initial_state(params, adamw)
  rng = np.random.default_rng(0)
  for _ in range(10):
    item_B = rng.choice(50, 32, replace=False)
    state, metrics = step(state, frozen, item_B)
    value = torch_step(torch.from_numpy(item_B))
    assert metrics["gradient_norm"] > config.clip
    np.testing.assert_allclose(value, metrics["loss"], rtol=1e-5)
  expected = torch_mm_rqvae.named_like_torch(nnx.merge(graph, state["params"], frozen).model)
  for name, parameter in theirs.named_parameters():
    found = parameter.detach().numpy()
    np.testing.assert_allclose(found, expected[name], atol=5e-6, err_msg=name)
