"""The PyTorch contestants of the step benchmark compute what our recommender computes."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.losses.next_item import cross_entropy
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.placement import model_tensors
from mmesid_jax.parallel.variables import Pretrained

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
torch_recommender = pytest.importorskip("torch_recommender")

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "recommender_step.py"
ITEMS, P = 30, 3
WIDTH = {"text": 10, "visual": 7}
HISTORIES = [[4, 9, 2], [], [7], [1, 30, 12, 12, 5, 8], [9, 2]]
TARGETS = [3, 30, 1, 17, 3]


def both(encoder: str, S: int, *, D: int, lora: bool):
  """Our model and the same in torch, everything random, no dropout."""
  rng = np.random.default_rng(0)

  def table(*shape):
    return rng.normal(size=shape).astype(np.float32)

  adapter = LoRAConfig(rank=2, alpha=4.0) if lora else None
  weights = "float32" if lora else "trained"
  config = LlamaConfig(layers=2, D=D, F=24, N=4, K=2, H=6, weights=weights, lora=adapter)
  features = {m: table(ITEMS + 1, V) for m, V in WIDTH.items()}
  codes = {m: rng.integers(0, 5, (ITEMS + 1, 3)).astype(np.int32) for m in WIDTH}
  codebooks = {m: table(3, 5, D) for m in WIDTH}
  rngs = nnx.Rngs(0)
  ours = RecommenderModel(
    ItemEncoder(features, codes, codebooks, D=D, kind=encoder, rngs=rngs),
    FrequencyFusion(np.arange(ITEMS + 1) ** 2, 2, kind="frequency", temperature=0.5, rngs=rngs),
    config,
    P=P,
    S=S,
    item_dropout=0.0,
    rngs=rngs,
  )
  drawn = nnx.state(ours, nnx.Any(nnx.Param, Pretrained))  # some are zero at first
  nnx.update(ours, jax.tree.map(lambda x: jnp.asarray(0.3 * table(*x.shape)), drawn))
  theirs = torch_recommender.TorchRecommender(
    config,
    features=features,
    codes=codes,
    codebooks=codebooks,
    frequency_I=np.asarray(ours.gates.frequency_I[...]),
    encoder=encoder,
    temperature=0.5,
    P=P,
    S=S,
  ).eval()
  torch_recommender.copy_parameters(ours, theirs)
  return ours, theirs


@nnx.jit
def loss_and_gradient(model, batch):
  def loss(model):
    return cross_entropy(model.scores(model.hidden(batch)), batch.target_Q, batch.weight_Q)[0]

  return nnx.value_and_grad(loss)(model)


@pytest.mark.parametrize("S", [0, 2])
@pytest.mark.parametrize("encoder", ["tied", "mlp"])
@pytest.mark.parametrize("D, lora", [(16, True), (4, False)], ids=["few targets", "many targets"])
def test_loss_and_gradient_equal_ours(encoder, S, D, lora):
  """16 is wider than the 5 targets, 4 is not: both orders of the products that score."""
  ours, theirs = both(encoder, S, D=D, lora=lora)
  sequences = [np.array([*h, t]) for h, t in zip(HISTORIES, TARGETS, strict=True)]
  first_targets = [len(h) for h in HISTORIES]
  (batch,) = batch_sequences(sequences, Layout(2, 24, len(TARGETS), S), first_targets)
  value, gradient = loss_and_gradient(ours, batch)
  expected = model_tensors(gradient)

  parameters = dict(theirs.named_parameters())
  histories = [np.array(h, np.int64) for h in HISTORIES]
  for way, size in ((torch_recommender.ReleasedStyle, 2), (torch_recommender.Good, 5)):
    training = way(theirs, learning_rate=1e-3)
    losses = [training.loss(b) for b in training.micro_batches(histories, TARGETS, size)]
    np.testing.assert_allclose(sum(x.item() for x in losses), value, rtol=1e-4)
    theirs.zero_grad()
    sum(losses).backward()
    for name in ("items.identity_ID", "items.codebook_LCD.text", "prompt_PD"):
      scale = np.abs(expected[name]).max()
      assert scale > 0
      np.testing.assert_allclose(parameters[name].grad, expected[name], atol=1e-3 * scale)


def test_torch_contestants_at_toy_size(tmp_path):
  """LoRA around a frozen backbone, a process for each, as on a GPU at 8 B."""
  names = ["packed", "torch_released", "torch_good"]
  command = [sys.executable, SCRIPT, "--size=toy", "--variant=paper_prompt", "--isolate"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  done = subprocess.run(
    [*command, f"--output={tmp_path}", "--rounds=1", "--contestants=" + ",".join(names)],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  figures = json.loads((tmp_path / "recommender_step.json").read_text())
  assert list(figures["contestants"]) == names
  for c in figures["contestants"].values():
    assert 0 < c["rates"][0] < np.inf
    assert c["trained"] == figures["contestants"]["packed"]["trained"]
