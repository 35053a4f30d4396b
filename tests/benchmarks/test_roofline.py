"""The kernels of benchmarks/roofline.py against other counts of the same step, and the script as it
is typed."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import kernels
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.losses.next_item import cross_entropy
from mmesid_jax.models import flops
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel

ROOT = pathlib.Path(__file__).parents[2]
WIDTHS = {"collaborative": 8, "text": 24}
ITEMS, P, S = 90, 5, 2
LAYOUT = Layout(rows=2, row_length=40, targets=16, response=S, items=30)
LORA = LoRAConfig(4, 8.0, dropout=0.05)
LLAMA = LlamaConfig(
  **{"layers": 3, "D": 64, "F": 160, "N": 4, "K": 2, "H": 16, "attention": "xla"},
  **{"weights": "float32", "lora": LORA},
)
REMATS = ("none", "products", "layers")


def make(c: LlamaConfig = LLAMA, kind: str = "mlp") -> RecommenderModel:
  """As shapes."""

  def model():
    rngs = nnx.Rngs(0)
    features = {m: np.zeros((ITEMS + 1, V), np.float32) for m, V in WIDTHS.items()}
    codes = {m: np.zeros((ITEMS + 1, 3), np.int32) for m in WIDTHS}
    books = {m: np.zeros((3, 8, c.D), np.float32) for m in WIDTHS}
    items = ItemEncoder(features, codes, books, D=c.D, kind=kind, rngs=rngs)
    counts_I = np.arange(ITEMS + 1)
    gates = FrequencyFusion(counts_I, len(WIDTHS), kind="sum", temperature=1.0, rngs=rngs)
    return RecommenderModel(items, gates, c, P=P, S=S, item_dropout=0.0, rngs=rngs)

  return nnx.eval_shape(model)


def step_of(model: RecommenderModel, remat: str = "none", **changes) -> kernels.Step:
  c = dataclasses.replace(model.backbone.config, remat=remat)
  nothing = dict.fromkeys(REMATS, dict.fromkeys(("layers", "pairs", "elsewhere"), 0.0))
  return kernels.Step(model, c, LAYOUT, "float32", nothing, **changes)


def gradient_of(model: RecommenderModel, layout: Layout):
  """The gradient of the loss, and its arguments as shapes."""
  graph, params, frozen = nnx.split(model, nnx.Param, ...)

  def loss(params, frozen, batch, key):
    model = nnx.merge(graph, params, frozen)
    scores_QI = model.scores(model.hidden(batch, key))
    return cross_entropy(scores_QI, batch.target_Q, batch.weight_Q)[0]

  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.grad(loss), params, frozen, Packer(layout).batch(), key


def operations(step: kernels.Step, *phases: str) -> float:
  found = [k for k in kernels.kernels(step, kernels.DEVICES[0]) if k.unit != "random"]
  return sum(k.times * k.operations for k in found if k.phase in phases)


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "tied"])
def test_what_is_not_computed_again_is_what_mfu_counts(kind, flash):
  tokens = LAYOUT.rows * LAYOUT.row_length
  pairs = P**2 + tokens * (P + LAYOUT.row_length)
  work = flops.Work(tokens, P, pairs, LAYOUT.item_places + 1, LAYOUT.targets)
  for remat in REMATS:
    step = step_of(make(kind=kind), remat, flash=flash)
    counted = operations(step, "forward", "backward", "update")
    assert counted == pytest.approx(flops.recommender_flops(step.model, work), rel=0.02)


def products(jaxpr) -> float:
  """Operations of the matrix products in a jaxpr and in what it calls; a scan's as often as it
  runs."""
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
      total += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
    inside = sum(products(inner) for inner in jaxprs_in_params(equation.params))
    total += inside * equation.params.get("length", 1)
  return total


@pytest.mark.parametrize("remat", REMATS)
def test_products_are_those_of_the_traced_gradient(remat):
  """What is computed again among them: jax leaves out of it what the gradient does not need."""
  model = make(dataclasses.replace(LLAMA, remat=remat))
  gradient, *arguments = gradient_of(model, LAYOUT)
  traced = jax.make_jaxpr(gradient)(*arguments)
  step = step_of(model, remat, flash=False)
  counted = operations(step, "forward", "again", "backward")
  assert counted == pytest.approx(products(traced.jaxpr), rel=0.001)


DEEP = dataclasses.replace(LLAMA, layers=8, D=256, F=896, K=1, H=64)


@functools.cache
def kept(row_length: int) -> dict[str, dict[str, float]]:
  layout = Layout(rows=4, row_length=row_length, targets=96, response=S, items=96)
  return {remat: kernels.kept(make(DEEP), layout, remat) for remat in REMATS}


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMATS)
def test_memory_is_what_xla_takes(remat):
  """Of a step without the optimizer: what is kept, and the largest temporary."""
  layout = Layout(rows=4, row_length=128, targets=96, response=S, items=96)
  c = dataclasses.replace(DEEP, remat=remat)
  model = make(c)
  gradient, *arguments = gradient_of(model, layout)
  compiled = jax.jit(gradient).lower(*arguments).compile()
  held = kernels.memory(kernels.Step(model, c, layout, "float32", kept(128), flash=False))
  parts = ("kept by layers", "kept elsewhere", "largest temporary")
  taken = compiled.memory_analysis().temp_size_in_bytes
  assert sum(held[part] for part in parts) == pytest.approx(taken, rel=0.25)
  X = P + layout.rows * layout.row_length
  a_token = {"layers": c.D, "products": 3 * c.D + 2 * c.K * c.H + 2 * c.F}  # down: not needed
  if remat in a_token:
    assert held["kept by layers"] == pytest.approx(4 * c.layers * X * a_token[remat], rel=0.001)


@pytest.mark.parametrize("flash", [True, False])
def test_a_flash_kernel_keeps_nothing_that_grows_with_pairs(flash):
  def a_layer(row_length: int) -> float:
    layout = Layout(rows=4, row_length=row_length, targets=96, response=S, items=96)
    step = kernels.Step(make(DEEP), DEEP, layout, "float32", kept(row_length), flash=flash)
    return step.kept_by_a_layer("none")

  assert (a_layer(128) <= 2 * a_layer(64)) == flash


@pytest.mark.slow
def test_predicts_from_a_data_set(tmp_path):
  """As it is typed; its trained parameters are those of the paper's model around these items."""
  items = 40
  lines = [" ".join(map(str, (u, *range(1, 4 + u), items))) for u in range(1, 20)]
  (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")
  command = [sys.executable, "benchmarks/roofline.py", f"--data={tmp_path}", f"--output={tmp_path}"]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  told = json.loads((tmp_path / "roofline.json").read_text())
  D, F, layers, r = 4096, 14_336, 32, 8
  lora = layers * r * 3 * (D + F)
  mlp = 6 * D * 3 * D + 3 * D + 3 * D * D + D
  projections = (64 + 1280 + 1280) * D + 3 * D
  gates = 64 + 64 + 64 * 10 + 10 + 10 * 64 + 64 * 4 + 4
  assert told["trained"] == lora + mlp + projections + 12 * 256 * D + (items + 1) * D + gates
  assert told["targets"] == sum(2 + u for u in range(1, 20))  # all but the last two items
  assert told["tokens"] == sum(1 + u + 5 * (2 + u) for u in range(1, 20))
  assert len(told["rows"]) == 5 * 3 * 3
  h200 = {r["remat"]: r for r in told["rows"] if (r["device"], r["weights"]) == ("H200", "nf4")}
  assert max(h200["none"]["step"], h200["products"]["step"]) < h200["layers"]["step"]
  assert h200["none"]["bytes"] > h200["products"]["bytes"] > h200["layers"]["bytes"]
  assert "Predicted, not measured" in done.stdout
