"""config.json of every family: what it means, what is refused, and that ours is read again."""

import dataclasses
import json

import pytest
from checkpoints import FAMILIES
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.errors import UserError
from mmesid_jax.hf.architecture import architecture_json, read_architecture
from mmesid_jax.models.llama import LlamaConfig, RopeScaling

SIZES = {
  **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
  **{"num_attention_heads": 32, "num_key_value_heads": 4},
}
SLIDING, FULL = "sliding_attention", "full_attention"


def read(folder, **fields) -> LlamaConfig:
  (folder / "config.json").write_text(json.dumps(SIZES | fields))
  return read_architecture(folder)


@pytest.mark.parametrize(
  "fields, parts",
  [
    ({"model_type": "llama"}, {}),
    ({"model_type": "llama", "layer_types": [FULL] * 3}, {}),
    ({"model_type": "mistral"}, {"window": 4096}),
    ({"model_type": "mistral", "sliding_window": 7}, {"window": 7}),
    ({"model_type": "mistral", "sliding_window": None}, {}),
    ({"model_type": "mistral", "sliding_window": 7, "layer_types": [SLIDING] * 3}, {"window": 7}),
    ({"model_type": "qwen2"}, {"qkv_bias": True}),
    ({"model_type": "qwen2", "attention_bias": True}, {"qkv_bias": True}),
    ({"model_type": "qwen2", "head_dim": 8}, {"qkv_bias": True, "H": 8}),
    ({"model_type": "qwen2", "sliding_window": 7, "max_window_layers": 0}, {"qkv_bias": True}),
    # 28 layers without a window come first, and it has 3
    ({"model_type": "qwen2", "use_sliding_window": True}, {"qkv_bias": True}),
    (
      {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
      {"qkv_bias": True, "window": 4096},
    ),
    (
      {
        **{"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7},
        "layer_types": [SLIDING] * 3,
      },
      {"qkv_bias": True, "window": 7},
    ),
    (
      {
        **{"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
        "layer_types": [FULL] * 3,
      },
      {"qkv_bias": True},
    ),
    (
      {
        **{"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
        "sliding_window": None,
      },
      {"qkv_bias": True},
    ),
    ({"model_type": "qwen3"}, {"head_norms": True, "H": 128}),
    ({"model_type": "qwen3", "head_dim": 16}, {"head_norms": True, "H": 16}),
    (
      {
        **{"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9},
        "max_window_layers": -1,
      },
      {"head_norms": True, "H": 128, "window": 9},
    ),
  ],
)
def test_every_family_has_its_parts(tmp_path, fields, parts):
  sizes = {"layers": 3, "D": 64, "F": 96, "N": 32, "K": 4, "H": 2, "norm_eps": 1e-6}
  assert read(tmp_path, **fields) == LlamaConfig(**{**sizes, "rope_theta": 1e4, **parts})


@pytest.mark.parametrize("kind, heads", [("llama", 32), ("mistral", 8), ("qwen2", 32)])
def test_heads_that_are_not_named(tmp_path, kind, heads):
  """Absent, they have each architecture's default; null is as many as there are queries."""
  config = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"} | {"model_type": kind}
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert read_architecture(tmp_path).K == heads
  assert read(tmp_path, model_type=kind, num_key_value_heads=None).K == 32


@pytest.mark.parametrize(
  "fields, message",
  [
    *(
      (
        {"model_type": kind},
        "model_type is .*, expected one of llama .*, mistral .*, qwen2 .*qwen3",
      )
      for kind in ("gemma2", "qwen3_moe", "qwen2_vl", "mixtral", "phi3", None, ["llama"], 3)
    ),
    ({"model_type": "llama", "attention_bias": True}, "attention_bias is True, expected none"),
    ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is True, expected none"),
    ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias is True, expected none"),
    ({"model_type": "llama", "sliding_window": 7}, "sliding_window is 7, expected none"),
    ({"model_type": "llama", "layer_types": [SLIDING] * 3}, "expected 3 times 'full_attention'"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0, expected an integer"),
    ({"model_type": "mistral", "sliding_window": "4"}, "sliding_window is '4', expected an"),
    (
      {"model_type": "mistral", "layer_types": [FULL, SLIDING, FULL]},
      "layer_types is .*, expected 3 times 'sliding_attention': a window that only some layers",
    ),
    ({"model_type": "mistral", "layer_types": [FULL] * 3}, "expected 3 times 'sliding_attention'"),
    (
      {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2},
      "max_window_layers is 2, expected 0 or 3: a window that only some layers have does not",
    ),
    (
      {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "2"},
      "max_window_layers is '2', expected 0 or 3",
    ),
    (
      {"model_type": "qwen3", "use_sliding_window": True, "layer_types": [FULL, FULL, SLIDING]},
      "layer_types is .*, expected 3 times 'sliding_attention' or 'full_attention'",
    ),
    *(
      ({"model_type": "qwen3", "layer_types": kinds}, "layer_types is .*, expected 3 times 'full")
      for kinds in ([SLIDING] * 3, [FULL] * 2, [], "full_attention", [[FULL]] * 3)
    ),
    ({"model_type": "qwen3", "head_dim": None}, "head_dim is None, expected an integer"),
    (
      {"model_type": "qwen2", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
      "rope_scaling is .*'yarn'.*, expected rope_type 'default' or 'llama3'",
    ),
    (
      {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4},
      "rope_theta is 10000.0, expected the same as in rope_parameters",
    ),
  ],
)
def test_what_does_not_load_is_named(tmp_path, fields, message):
  with pytest.raises(UserError, match=message) as caught:
    read(tmp_path, **fields)
  assert "\n" not in str(caught.value)


@given(
  family=st.sampled_from(sorted(FAMILIES)),
  window=st.none() | st.integers(1, 5000),
  layers=st.integers(1, 40),
  heads=st.sampled_from([(1, 1), (4, 2), (6, 6)]),
  half_width=st.integers(1, 64),
  scaling=st.none()
  | st.builds(
    RopeScaling, *(st.floats(1, 64), st.floats(1, 8), st.floats(9, 64)), st.integers(1, 10**5)
  ),
  theta=st.floats(10, 1e7),
)
def test_what_is_written_is_read_again(
  tmp_path_factory, family, window, layers, heads, half_width, scaling, theta
):
  parts = {**FAMILIES[family], "window": None if family == "llama" else window}
  sizes = {"layers": layers, "D": 24, "F": 10, "N": heads[0], "K": heads[1], "H": 2 * half_width}
  c = LlamaConfig(**sizes, rope_theta=theta, rope_scaling=scaling, **parts)
  written = architecture_json(c, vocabulary=5, dtype="float32")
  assert written["model_type"] == ("llama" if family == "mistral" and window is None else family)
  folder = tmp_path_factory.mktemp("written")
  (folder / "config.json").write_text(json.dumps(written))
  assert read_architecture(folder) == c


def test_parts_that_no_architecture_has_together_are_not_written():
  c = LlamaConfig(layers=1, D=8, F=8, N=2, K=2, H=4, qkv_bias=True, head_norms=True)
  with pytest.raises(ValueError, match="no architecture has the parts"):
    architecture_json(c, vocabulary=5, dtype="float32")
  architecture_json(dataclasses.replace(c, head_norms=False), vocabulary=5, dtype="float32")
