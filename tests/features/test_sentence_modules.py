"""Directories of sentence-transformers; tests/parity compares their vectors with that library's."""

import json

import numpy as np
import pytest
import safetensors.numpy

from mmesid_jax.errors import UserError
from mmesid_jax.features.sentence_modules import read_sentence_modules

TYPE = "sentence_transformers.models."
WEIGHT = np.array([[1, 0, 1], [0, 2, 0]], np.float32)
BIAS = np.array([0.5, -1], np.float32)


def write_json(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def write_modules(folder, *kinds, prefix=TYPE):
  """modules.json, with the folders N_Kind; the Transformer is the directory itself."""
  modules = [
    {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"{prefix}{kind}"}
    for n, kind in enumerate(kinds)
  ]
  write_json(folder / "modules.json", modules)


def write_dense(folder, *, tensors=None, **config):
  folder.mkdir(exist_ok=True)
  default = {"in_features": 3, "out_features": 2, "bias": True}
  write_json(folder / "config.json", default | config)
  own = {"linear.weight": WEIGHT, "linear.bias": BIAS}
  safetensors.numpy.save_file(own if tensors is None else tensors, folder / "model.safetensors")


def test_a_directory_without_modules_is_a_plain_model(tmp_path):
  modules = read_sentence_modules(tmp_path)
  assert modules.is_plain and modules.transformer == tmp_path and modules.pooling is None


@pytest.mark.parametrize(
  "config, pooling",
  [
    ({}, "mean"),
    ({"pooling_mode_cls_token": False}, "mean"),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    ({"pooling_mode_lasttoken": True}, "last"),
    ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_cls_token": True}, "cls+mean_sqrt"),
    ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
    ({"pooling_mode": "max"}, "max"),
    ({"pooling_mode": ["lasttoken", "mean"]}, "last+mean"),
    ({"pooling_mode": "strange"}, "strange"),  # refused where it is needed
  ],
)
def test_the_pooling_is_read_in_both_forms(tmp_path, config, pooling):
  write_modules(tmp_path, "Transformer", "Pooling")
  write_json(tmp_path / "1_Pooling" / "config.json", {"word_embedding_dimension": 3} | config)
  assert read_sentence_modules(tmp_path).pooling == pooling


def test_layers_after_the_pooling_are_applied_in_their_order(tmp_path):
  write_modules(tmp_path, "Transformer", "Pooling", "Normalize", "Dense", "Dense")
  write_json(tmp_path / "1_Pooling" / "config.json", {})
  write_dense(tmp_path / "3_Dense")
  square = {"linear.weight": -np.eye(2, dtype=np.float16)}
  relu = "torch.nn.modules.activation.ReLU"
  write_dense(tmp_path / "4_Dense", bias=False, tensors=square, activation_function=relu)
  modules = read_sentence_modules(tmp_path)
  x = np.array([[3, 0, 4], [0, 2, 0]], np.float32)
  for layer in modules.layers:
    x = layer(x)
  expected = np.maximum(-np.tanh([[0.6 + 0.8 + 0.5, -1], [0.5, 2 - 1]]), 0)
  np.testing.assert_allclose(x, expected, rtol=1e-6)
  assert x.dtype == np.float32
  assert modules.describe("cls") == (
    "pooling cls (not mean, by --pooling), Normalize, Dense 3 to 2 (Tanh), Dense 2 to 2 (ReLU)"
  )
  assert {f.name for f in modules.folders} >= {tmp_path.name, "1_Pooling", "3_Dense", "4_Dense"}


def test_length_case_and_prompt_are_read(tmp_path):
  modules = [{"path": "0_Transformer", "type": f"{TYPE}Transformer"}]
  write_json(tmp_path / "modules.json", modules)
  transformer = {"max_seq_length": 128, "do_lower_case": True}
  write_json(tmp_path / "0_Transformer" / "sentence_bert_config.json", transformer)
  prompts = {"prompts": {"query": "query: ", "doc": "doc: "}, "default_prompt_name": "doc"}
  write_json(tmp_path / "config_sentence_transformers.json", prompts)
  found = read_sentence_modules(tmp_path)
  assert (found.max_tokens, found.lower_case, found.prompt) == (128, True, "doc: ")
  assert found.transformer == tmp_path / "0_Transformer"


@pytest.mark.parametrize("kind", ["WeightedLayerPooling", "LayerNorm", "CNN", "Router"])
def test_modules_that_are_not_implemented_are_refused(tmp_path, kind):
  write_modules(tmp_path, "Transformer", kind)
  with pytest.raises(UserError, match=f"modules.json: {kind} as module 1 is not implemented"):
    read_sentence_modules(tmp_path)


@pytest.mark.parametrize(
  "modules, message",
  [
    ([], "expected a Transformer as the first module"),
    ([{"path": "", "type": f"{TYPE}Pooling"}], "expected a Transformer as the first module"),
    ([{"path": "", "type": "evil.Transformer"}], "'evil.Transformer' is code of its own"),
    ([{"path": "../x", "type": f"{TYPE}Transformer"}], "'../x' is not a folder in this directory"),
    ([{"path": "/x", "type": f"{TYPE}Transformer"}], "'/x' is not a folder in this directory"),
    ({}, "expected a list of objects"),
    (["x"], "expected a list of objects"),
  ],
)
def test_odd_lists_of_modules_are_refused(tmp_path, modules, message):
  write_json(tmp_path / "modules.json", modules)
  with pytest.raises(UserError, match=message):
    read_sentence_modules(tmp_path)


@pytest.mark.parametrize(
  "config, message",
  [
    ({"activation_function": "torch.nn.modules.activation.Softmax"}, "Softmax is not implemented"),
    ({"activation_function": "evil.Tanh"}, "the activation evil.Tanh is not implemented"),
    ({"use_residual": True}, "use_residual is not implemented"),
    ({"module_input_name": "token_embeddings"}, "'token_embeddings' is not implemented"),
    ({"bias": False}, "expected the tensors linear.weight, and no others"),
    ({"tensors": {"linear.weight": WEIGHT, "linear.bias": BIAS[:1]}}, "do not fit each other"),
  ],
)
def test_dense_layers_that_are_not_implemented_are_refused(tmp_path, config, message):
  write_modules(tmp_path, "Transformer", "Pooling", "Dense")
  write_json(tmp_path / "1_Pooling" / "config.json", {})
  write_dense(tmp_path / "2_Dense", **config)
  with pytest.raises(UserError, match=message):
    read_sentence_modules(tmp_path)


def test_other_settings_that_are_not_implemented_are_refused(tmp_path):
  write_modules(tmp_path, "Transformer", "Pooling")
  write_json(tmp_path / "1_Pooling" / "config.json", {"include_prompt": False})
  read_sentence_modules(tmp_path)  # there is no prompt
  prompts = {"prompts": {"doc": "doc: "}, "default_prompt_name": "doc"}
  write_json(tmp_path / "config_sentence_transformers.json", prompts)
  with pytest.raises(UserError, match="leaves the prompt out is not implemented"):
    read_sentence_modules(tmp_path)
  write_json(tmp_path / "sentence_bert_config.json", {"transformer_task": "fill-mask"})
  write_json(tmp_path / "config_sentence_transformers.json", {})
  with pytest.raises(UserError, match="'fill-mask' is not implemented"):
    read_sentence_modules(tmp_path)
