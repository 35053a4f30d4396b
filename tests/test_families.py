"""A checkpoint of every family trains, stops, resumes, exports and comes back; on a mesh too."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from checkpoints import FAMILIES, llama3, write_tiny_checkpoint
from flax import nnx

from mmesid_jax import pipeline
from mmesid_jax.config.saved import read_config
from mmesid_jax.config.schema import PROJECTIONS
from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.hf.adapter import read_adapter
from mmesid_jax.hf.architecture import read_architecture
from mmesid_jax.hf.llama_weights import load_weights
from mmesid_jax.hf.safetensors_dir import Checkpoint
from mmesid_jax.models.llama import Llama
from mmesid_jax.parallel.variables import LoRAParam, Pretrained
from mmesid_jax.planning import memory
from mmesid_jax.reports import export_backbone
from mmesid_jax.stages import recommender_stage
from mmesid_jax.stages.workdir import reopen_workdir

MESH = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


@pytest.fixture(
  scope="module",  # the slow ones share all but a bias, or a mask, with the others
  params=[
    pytest.param(f, marks=[pytest.mark.slow] * (f in ("mistral", "qwen2"))) for f in FAMILIES
  ],
)
def base(request, tmp_path_factory):
  directory = tmp_path_factory.mktemp("checkpoints") / request.param
  write_tiny_checkpoint(directory, dtype="float32", **FAMILIES[request.param])
  return directory


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
  """A workdir that was trained without a stop, on one device."""
  path = tmp_path_factory.mktemp("runs") / base.name
  pipeline.run_pipeline(configured(base), path)
  return path


def configured(base, **changes):
  """The recommender alone, LoRA on every projection, and a prompt that is longer than a window."""
  config = llama3(
    base,
    **{"lora.targets": PROJECTIONS, "lora.dropout": 0.0, "codes": "none", "epochs": 2},
    **{"backbone.weights": "float32", "backbone.compute": "float32"},
    **{"prompt.text": "He bought {items}", "optimizer.warmup_steps": 0},
  )
  config.update_from_flattened_dict({"stages": ("recommender",), "features.collaborative": ""})
  config.update_from_flattened_dict(changes)
  return config


def stopped_and_resumed(config, path, monkeypatch):
  metrics = Evaluator.metrics

  def stop(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return metrics(*arguments)

  with monkeypatch.context() as patch:
    patch.setattr(Evaluator, "metrics", stop)
    with pytest.raises(Interrupted, match="SIGTERM"):
      pipeline.run_pipeline(config, path)
  pipeline.run_pipeline(config, path)


def trained_tensors(path):
  return read_artifact(path / "recommender.safetensors", "recommender")[0]


def states(path, change=lambda model: None):
  """Hidden states of the first batch's targets, by the workdir's model after `change`."""
  workdir = reopen_workdir(path)
  model = recommender_stage.load_recommender(path, read_config(path))
  change(model)
  batch = next(iter(recommender_stage.make_batches(workdir.config, workdir.dataset)[0]))
  return np.asarray(nnx.jit(lambda model, batch: model.hidden(batch))(model, batch))


def weights_of(directory, kind="float32"):
  """For `states`: the backbone of another directory, without an adapter."""

  def change(model):
    c = dataclasses.replace(model.backbone.config, lora=None, weights=kind)
    model.backbone = nnx.eval_shape(lambda: Llama(c, rngs=nnx.Rngs(0)))
    load_weights(model.backbone, Checkpoint(directory))

  return change


def test_a_stopped_run_ends_as_one_that_was_not(base, whole, tmp_path, monkeypatch):
  stopped_and_resumed(configured(base), tmp_path / "run", monkeypatch)
  expected, found = trained_tensors(whole), trained_tensors(tmp_path / "run")
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.slow
def test_a_stopped_run_on_a_mesh_ends_as_on_one_device(base, whole, tmp_path, monkeypatch):
  """As near as sums in another order are, which AdamW turns into steps."""
  stopped_and_resumed(configured(base, **MESH), tmp_path / "run", monkeypatch)
  np.testing.assert_allclose(states(tmp_path / "run"), states(whole), atol=2e-3)
  assert_comes_back(tmp_path / "run", base, tmp_path / "merged")


def assert_comes_back(path, base, output):
  """The merged export and the adapter both give the states of the workdir's model."""
  expected = states(path)
  export_backbone.export_backbone(path, output)
  assert read_architecture(output) == read_architecture(base)
  assert json.loads((output / "config.json").read_text())["model_type"] == base.name

  def read_own_adapter(model):
    state = nnx.state(model.backbone, LoRAParam)
    nnx.update(model.backbone, jax.tree.map(np.zeros_like, state))
    read_adapter(model.backbone, path / "adapter")

  np.testing.assert_allclose(states(path, weights_of(output)), expected, atol=1e-4)
  np.testing.assert_array_equal(states(path, read_own_adapter), expected)


def test_the_merged_export_and_the_adapter_give_the_trained_states(base, whole, tmp_path):
  assert_comes_back(whole, base, tmp_path / "merged")
  change = np.abs(states(whole, weights_of(base)) - states(whole)).max()
  assert change > 1e-2, "training must change something"


@pytest.mark.parametrize("kind, error", [("bfloat16", 0.02), ("int8", 0.05), ("nf4", 0.4)])
def test_codes_of_the_weights_give_nearly_their_states(base, whole, kind, error):
  expected = states(whole, weights_of(base))
  found = states(whole, weights_of(base, kind))
  assert np.linalg.norm(found - expected) < error * np.linalg.norm(expected)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "nf4"])
def test_a_plan_has_every_weight_of_the_family(base, weights):
  config = configured(base, **{"recommender.backbone.weights": weights})
  pipeline.check_config(config)
  made = recommender_stage.init_recommender(
    *(config.recommender, 0),
    features={"text": np.zeros((9, 6), np.float32)},
    **{"codes": {}, "codebooks": {}, "counts_I": np.ones(9, int)},
  )
  planned = memory.model_shapes(config, 9, {"text": 6})
  found, expected = (
    {path: (x.shape, x.dtype) for path, x in nnx.to_flat_state(nnx.state(model, Pretrained))}
    for model in (planned, made)
  )
  assert found == expected
  parts = {path[-2:] for path in found}
  assert (("q", "bias") in parts) == (base.name == "qwen2")
  assert (("norm_k", "scale") in parts) == (base.name == "qwen3")
  if weights in ("float32", "bfloat16"):
    held = sum(np.prod(shape) for path, (shape, _) in found.items() if path[0] == "backbone")
    assert held == planned.backbone.config.parameters


def test_a_plan_gives_a_device_its_share_of_the_heads(base):
  config = configured(base)
  pipeline.check_config(config)
  half = memory.model_shapes(config, 9, {"text": 6}, parts=2).backbone
  assert (half.config.N, half.config.K, half.config.F) == (2, 1, 64)
  assert half.blocks.attention.q.weight.shape == (2, 64, 2, 16)
  if base.name == "qwen2":
    assert half.blocks.attention.v.bias.shape == (2, 1, 16)


def test_codes_want_whole_blocks_of_all_heads_too(tmp_path):
  """Qwen3's heads have a width of their own, so together they may be no multiple of the blocks."""
  write_tiny_checkpoint(tmp_path / "base", **FAMILIES["qwen3"], H=24)
  config = configured(tmp_path / "base", **{"recommender.backbone.weights": "int8"})
  with pytest.raises(
    UserError, match=r"weights=int8: wants heads \* head_width=96 in blocks of 64"
  ):
    pipeline.check_config(config)
