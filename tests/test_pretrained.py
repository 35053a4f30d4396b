"""The recommender on a Hugging Face checkpoint: from tokenizer to adapter, and back again."""

import contextlib
import io
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import llama3, write_tiny_checkpoint, write_tokenizer

from mmesid_jax import pipeline
from mmesid_jax.config.saved import read_config
from mmesid_jax.errors import UserError
from mmesid_jax.files import artifact
from mmesid_jax.hf.safetensors_dir import SINGLE, Checkpoint
from mmesid_jax.reports import export_backbone
from mmesid_jax.reports.test_ranks import evaluate_models
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages import recommender_stage
from mmesid_jax.stages.workdir import reopen_workdir


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  directory = tmp_path_factory.mktemp("checkpoints") / "base"
  write_tiny_checkpoint(directory)
  return directory


@pytest.fixture(scope="module")
def first(base, tmp_path_factory):
  """A trained workdir, and what its training printed."""
  path, out = tmp_path_factory.mktemp("runs") / "llama3", io.StringIO()
  with contextlib.redirect_stdout(out):
    pipeline.run_pipeline(llama3(base), path)
  return path, out.getvalue()


@pytest.fixture
def workdir(first, tmp_path):
  return pathlib.Path(shutil.copytree(first[0], tmp_path / "copy"))


def restored(path):
  config = read_config(path)
  return recommender_stage.load_recommender(path, config)


def test_sizes_and_prompt_come_from_the_checkpoint(first, base):
  saved = json.loads((first[0] / "config.json").read_text())["recommender"]
  sizes = json.loads((base / "config.json").read_text())
  assert saved["width"] == sizes["hidden_size"] and saved["layers"] == sizes["num_hidden_layers"]
  assert saved["kv_heads"] == sizes["num_key_value_heads"] != saved["heads"]
  assert saved["prompt"]["response"] == len(" ") + 3 + len("assistant")
  assert saved["prompt"]["length"] > 100  # a token a letter
  assert saved["backbone"]["checkpoint"] == str(base)


def test_the_run_says_what_is_adapted_and_what_it_takes(first):
  printed = first[1]
  assert "LoRA: matched 6 projections, 0.01 M parameters" in printed
  # 2 layers: q, out 64 x 64; k, v 64 x 32; three of 64 x 128; in bfloat16
  size = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
  assert f"frozen backbone {2 * size / 2**20:.1f} MiB (2.00 bytes a parameter)" in printed
  assert "MME-SID" in printed


def test_the_artifact_holds_what_was_trained_and_no_pretrained_weight(first):
  named, _ = artifact.read_artifact(first[0] / "recommender.safetensors", "recommender")
  backbone = [k for k in named if k.startswith("model.backbone")]
  assert backbone and all(".lora." in k for k in backbone)
  assert not any("prompt_PD" in k or "response_SD" in k for k in named)
  # only LoRA's B starts at zero: that it no longer is shows that it was trained
  trained = {k: np.abs(named[k]).max() for k in backbone if k.endswith(".b")}
  assert all(trained.values())


def test_the_adapter_is_what_the_artifact_holds(first):
  adapter = safetensors.numpy.load_file(first[0] / "adapter" / "adapter_model.safetensors")
  named, _ = artifact.read_artifact(first[0] / "recommender.safetensors", "recommender")
  ours = named["model.backbone.blocks.mlp.up.lora.b"]
  for i, layer in enumerate(ours):
    key = f"base_model.model.model.layers.{i}.mlp.up_proj.lora_B.weight"
    np.testing.assert_array_equal(adapter[key], layer.T)
  assert len(adapter) == 2 * 3 * len(ours)


def test_it_recommends_and_evaluates_from_the_workdir(workdir, capsys):
  answer = Recommender.load(workdir).recommend([[3, 5], []], top_k=4)
  assert [len(a) for a in answer] == [4, 4]
  table = json.loads((workdir / "evaluation.json").read_text())["models"]["MME-SID"]
  pipeline.report_ranks(reopen_workdir(workdir), "test")
  again = json.loads((workdir / "evaluation.json").read_text())["models"]["MME-SID"]
  assert again == table


def test_a_second_run_trains_nothing(workdir, base, capsys):
  pipeline.run_pipeline(llama3(base), workdir)
  assert "recommender: up to date" in capsys.readouterr().out


def test_the_checkpoint_may_move_but_not_change(workdir, base, tmp_path, capsys):
  moved = shutil.copytree(base, tmp_path / "moved")
  pipeline.run_pipeline(llama3(moved), workdir)
  assert "recommender: up to date" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["model.layers.1.mlp.up_proj.weight", "tokenizer.json"])
def test_a_checkpoint_that_has_changed_is_refused(workdir, base, tmp_path, changed):
  """A single number, or a byte of the tokenizer's, by every command that reads the model."""
  other = shutil.copytree(base, tmp_path / "other")
  if changed.endswith(".json"):
    (other / changed).write_text((other / changed).read_text() + "\n")
  else:
    tensors = safetensors.numpy.load_file(other / SINGLE)
    tensors[changed][-1, -1] += 1
    safetensors.numpy.save_file(tensors, other / SINGLE)
  with pytest.raises(UserError, match="recommender was made from other data.*--overwrite"):
    pipeline.run_pipeline(llama3(other), workdir)
  saved = workdir / "config.json"
  saved.write_text(saved.read_text().replace(str(base), str(other)))
  for use in (Recommender.load, lambda path: evaluate_models(reopen_workdir(path), "test")):
    with pytest.raises(UserError, match=f"{other}: its files are not those that .* trained on"):
      use(workdir)


@pytest.mark.parametrize("weights", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_a_quantised_base_trains_and_answers(first, base, weights, tmp_path, capsys):
  workdir = pathlib.Path(shutil.copytree(first[0], tmp_path / weights))
  config = llama3(base, **{"backbone.weights": weights})
  with pytest.raises(UserError, match=f"backbone.weights was 'bfloat16', now '{weights}'"):
    pipeline.run_pipeline(config, workdir)
  pipeline.run_pipeline(config, workdir, overwrite=True)
  size = {"int8": "1.0", "nf4": "0.5"}[weights]
  assert f"({size}" in capsys.readouterr().out.split("frozen backbone")[1][:20]
  assert len(Recommender.load(workdir).recommend([[3, 5]], top_k=4)[0]) == 4


def test_training_starts_from_an_adapter(first, base, tmp_path):
  """With next to no learning rate, what comes out is what went in."""
  workdir = pathlib.Path(shutil.copytree(first[0], tmp_path / "second"))
  config = llama3(base, **{"lora.start": str(first[0] / "adapter"), "epochs": 1})
  config.recommender.optimizer.learning_rate = 1e-12
  pipeline.run_pipeline(config, workdir, overwrite=True)
  old, new = (
    safetensors.numpy.load_file(w / "adapter/adapter_model.safetensors")
    for w in (first[0], workdir)
  )
  for key, x in old.items():
    np.testing.assert_allclose(new[key], x, atol=1e-7)
  with pytest.raises(UserError, match="r is 8, the configuration has 4"):
    pipeline.run_pipeline(
      llama3(base, **{"lora.start": str(first[0] / "adapter"), "lora.rank": 4}), tmp_path / "new"
    )
  assert not (tmp_path / "new").exists()


def test_an_adapter_beside_the_weights_is_named_where_it_is_not_read(first, base, tmp_path, capsys):
  """transformers would read it."""
  both = shutil.copytree(base, tmp_path / "both")
  for file in (first[0] / "adapter").iterdir():
    shutil.copy(file, both)
  config = llama3(both)
  pipeline.check_config(config)
  says = f"warning: {both}: the adapter beside the weights is not read; .*lora.start={both}"
  assert re.search(says, capsys.readouterr().err)
  pipeline.check_config(llama3(both, **{"lora.start": str(both)}))
  assert "adapter" not in capsys.readouterr().err


def test_all_weights_may_train(first, base, tmp_path):
  workdir = pathlib.Path(shutil.copytree(first[0], tmp_path / "full"))
  pipeline.run_pipeline(
    llama3(base, **{"backbone.kind": "full", "epochs": 1}), workdir, overwrite=True
  )
  named, _ = artifact.read_artifact(workdir / "recommender.safetensors", "recommender")
  up = named["model.backbone.blocks.mlp.up.weight"][0]
  start = Checkpoint(base).read("model.layers.0.mlp.up_proj.weight").T.astype(np.float32)
  assert 0 < np.abs(up - start).max() < 0.1


def test_the_first_layers_alone_train_and_go_on_as_a_checkpoint(workdir, base, tmp_path):
  whole = shutil.copytree(base, tmp_path / "whole")
  architecture = json.loads((whole / "config.json").read_text())
  architecture["layer_types"] = ["full_attention"] * 2
  (whole / "config.json").write_text(json.dumps(architecture))
  output = tmp_path / "short"
  pipeline.run_pipeline(llama3(whole, layers=1, epochs=1), workdir, overwrite=True)
  model, start = restored(workdir), Checkpoint(whole)
  assert model.backbone.config.layers == 1
  q = np.asarray(model.backbone.blocks.attention.q.weight[...][0]).reshape(64, -1)
  np.testing.assert_array_equal(q, start.read("model.layers.0.self_attn.q_proj.weight").T)
  export_backbone.export_backbone(workdir, output)
  written = json.loads((output / "config.json").read_text())
  assert (written["num_hidden_layers"], written["layer_types"]) == (1, ["full_attention"])
  short = Checkpoint(output)
  assert sorted(short.keys()) == sorted(k for k in start.keys() if "layers.1." not in k)
  np.testing.assert_array_equal(short.read("model.norm.weight"), start.read("model.norm.weight"))
  pipeline.check_config(llama3(output))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"width": 32}, "width=32, but .*config.json says width=64; 0 takes that"),
    ({"layers": 3}, "layers=3, but .*config.json says layers=2; 0 takes that"),
    ({"rope_theta": 1e4}, "rope_theta=10000.0, but .*rope_theta=500000.0"),
    ({"prompt.length": 9}, "length=9, but the tokenizer says length="),
    ({"prompt.text": "no place"}, "prompt.text='no place': expected"),
    ({"backbone.checkpoint": ""}, "backbone.kind=lora: .*name their directory"),
    ({"backbone.checkpoint": "/nowhere"}, "/nowhere/config.json: no such file"),
  ],
)
def test_what_the_checkpoint_contradicts_is_refused(base, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    pipeline.run_pipeline(llama3(base, **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_presets_take_their_own_prompt(base):
  texts = {
    preset: llama3(base, preset).recommender.prompt.text
    for preset in ("paper", "released_code", "best")
  }
  assert texts["paper"] == texts["best"] != texts["released_code"]


def test_a_checkpoint_of_another_family_gets_the_prompt_in_its_own_form(base, tmp_path, capsys):
  other = shutil.copytree(base, tmp_path / "other")
  write_tokenizer(other, ("<|im_start|>", "<|im_end|>"))
  (other / "chat_template.jinja").write_text(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant"
  )
  config = llama3(other)
  pipeline.check_config(config)
  prompt = config.recommender.prompt
  assert prompt.text.endswith("{items}<|im_end|>\n<|im_start|>assistant")
  assert prompt.response == 1 + 1 + 1 + len("assistant")
  assert "is in the checkpoint's own chat form" in capsys.readouterr().out


def test_the_merged_backbone_differs_by_its_adapter_and_nothing_else(workdir, base, tmp_path):
  output = tmp_path / "merged"
  export_backbone.export_backbone(workdir, output)
  merged, source = Checkpoint(output), Checkpoint(base)
  adapter = safetensors.numpy.load_file(workdir / "adapter/adapter_model.safetensors")
  assert sorted(merged.keys()) == sorted(source.keys())
  for key in source.keys():
    expected = source.read(key)
    if ".mlp." in key:
      a, b = (adapter[f"base_model.model.{key[:-6]}lora_{x}.weight"] for x in "AB")
      expected = (expected.astype(np.float32) + 16 / 8 * (b @ a)).astype(expected.dtype)
      assert (expected != source.read(key)).any()
      # the product is a float32 sum in another order, so few weights round to the next bfloat16
      ours = merged.read(key)
      np.testing.assert_allclose(np.float32(ours), np.float32(expected), rtol=2**-7, atol=1e-6)
      assert (ours == expected).mean() > 0.99, key
    else:
      np.testing.assert_array_equal(merged.read(key), expected, err_msg=key)
  assert (output / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
  ours, theirs = (json.loads((d / "config.json").read_text()) for d in (output, base))
  assert ours == theirs
  with pytest.raises(UserError, match="merged: exists already"):
    export_backbone.export_backbone(workdir, output)


def test_a_backbone_from_scratch_becomes_a_checkpoint(trained, tmp_path):
  export_backbone.export_backbone(trained, tmp_path / "scratch")
  model = restored(trained)
  found = Checkpoint(tmp_path / "scratch")
  np.testing.assert_array_equal(found.read("model.embed_tokens.weight"), model.prompt_PD[...])
  up = found.read("model.layers.0.mlp.up_proj.weight")
  np.testing.assert_array_equal(up, model.backbone.blocks.mlp.up.weight[...][0].T)
