"""The step benchmark at toy size, and its one-sample-per-target batches against packed rows."""

import json
import os
import pathlib
import subprocess
import sys

import alone
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "recommender_step.py"
OURS = ["packed", "alone", "packed_backbone", "alone_backbone"]
ITEMS, D = 30, 8


def small_model(S: int) -> RecommenderModel:
  rng, rngs = np.random.default_rng(0), nnx.Rngs(0)
  features = {"text": rng.normal(size=(ITEMS + 1, 5)).astype(np.float32)}
  items = ItemEncoder(features, {}, {}, D=D, kind="tied", rngs=rngs)
  gates = FrequencyFusion(np.arange(ITEMS + 1), 1, kind="frequency", temperature=1.0, rngs=rngs)
  backbone = LlamaConfig(layers=1, D=D, F=12, N=2, K=1, H=4)
  return RecommenderModel(items, gates, backbone, P=3, S=S, item_dropout=0.0, rngs=rngs)


@pytest.mark.slow
@pytest.mark.parametrize("S", [0, 2])
def test_samples_alone_have_the_hidden_states_of_packed_rows(S):
  """Lengths on both sides of a power of two, an empty history, a repeated item, padded places."""
  model, rng = small_model(S), np.random.default_rng(1)
  sequences = [rng.integers(1, ITEMS + 1, n) for n in (1, 2, 11, 9)]
  sequences[2][3] = sequences[2][4]
  samples = [(s[:t], int(s[t])) for s in sequences for t in range(len(s))]
  (packed,) = batch_sequences(sequences, Layout(2, 48, len(samples), S))
  expected = nnx.jit(RecommenderModel.hidden)(model, packed)

  groups = alone.by_length(samples, S, most=4)
  assert sorted({T for T, _ in groups}) == [8, 16]
  place = {id(history): q for q, (history, _) in enumerate(samples)}
  hidden, seen = nnx.jit(alone.hidden), []
  for (_, part), batch in zip(groups, alone.stacked(groups, S), strict=True):
    found = hidden(model, batch)[: len(part)]
    assert batch.target_Q[: len(part), 0].tolist() == [target for _, target in part]
    assert not batch.weight_Q[len(part) :].any()
    where = jnp.array([place[id(history)] for history, _ in part])
    np.testing.assert_allclose(found, expected[where], atol=2e-5)
    seen += where.tolist()
  assert sorted(seen) == list(range(len(samples)))


@pytest.mark.slow
def test_our_contestants_at_toy_size(tmp_path):
  command = [sys.executable, SCRIPT, "--size=toy", f"--output={tmp_path}", "--rounds=2"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  done = subprocess.run(
    [*command, "--contestants=" + ",".join(OURS)], env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  head, *lines = done.stdout.splitlines()
  assert "targets a second" in head
  assert [line.split()[0] for line in lines[: len(OURS)]] == OURS

  figures = json.loads((tmp_path / "recommender_step.json").read_text())
  assert figures["size"] == "toy" and figures["environment"]["jax"]
  assert list(figures["contestants"]) == OURS
  for name, c in figures["contestants"].items():
    assert len(c["rates"]) == 2 and np.isfinite(c["rates"]).all() and min(c["rates"]) > 0, name
    assert c["targets"] == figures["contestants"]["packed"]["targets"]
    assert c["trained"] == figures["contestants"]["packed"]["trained"]
    assert c["tflops_per_second"] > 0
