"""Tiny random models, written as llama.cpp writes them, come back as transformers' own."""

import io
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import pytest
from files.test_full_disk import filling_disk
from parity.llamas import SIZES, llama_from, states, tokens, torch_llama, torch_states

from mmesid_jax.errors import UserError
from mmesid_jax.hf.gguf_file import convert_gguf
from mmesid_jax.hf.prompt import tokenize_prompt

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

NAMES = {  # a part of Hugging Face's name -> llama.cpp's
  **{"model.layers": "blk", "model.embed_tokens": "token_embd", "model.norm": "output_norm"},
  **{"lm_head": "output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
  **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
  **{f"self_attn.{x}_norm": f"attn_{x}_norm" for x in "qk"},
  "self_attn.o_proj": "attn_output",
  **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
}
CASES = {
  "llama": {},
  "llama, tied": {"tie_word_embeddings": True},
  "qwen2": {"family": "Qwen2"},
  "qwen3": {"family": "Qwen3", "head_dim": 128},
}


def llama_cpp(model) -> dict[str, np.ndarray]:
  """The tensors under llama.cpp's names; its rotation of llama pairs neighbors, not halves."""
  c, tensors = model.config, {}
  for key, x in model.state_dict().items():
    if key == "lm_head.weight" and c.tie_word_embeddings:
      continue
    for theirs, ours in NAMES.items():
      key = key.replace(theirs, ours)
    x = x.float().numpy()
    if c.model_type == "llama" and key.endswith(("attn_q.weight", "attn_k.weight")):
      heads = c.num_attention_heads if "attn_q" in key else c.num_key_value_heads
      x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    tensors[key] = np.ascontiguousarray(x)
  return tensors


def write_gguf(file: pathlib.Path, model, tensors, *, kind="", **fields) -> pathlib.Path:
  """A file with a tokenizer of letters. kind: the architecture's name, if not the model's."""
  c = model.config
  writer = gguf.GGUFWriter(file, kind or c.model_type)
  writer.add_context_length(128)
  writer.add_block_count(c.num_hidden_layers)
  writer.add_embedding_length(c.hidden_size)
  writer.add_feed_forward_length(c.intermediate_size)
  writer.add_head_count(c.num_attention_heads)
  writer.add_head_count_kv(c.num_key_value_heads)
  writer.add_layer_norm_rms_eps(c.rms_norm_eps)
  writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
  for key, value in fields.items():
    writer.add_string(f"{c.model_type}.{key.replace('__', '.')}", value)
  letters = [*(chr(ord("!") + i) for i in range(SIZES["vocab_size"] - 2)), "!!"]
  writer.add_tokenizer_model("gpt2")
  writer.add_token_list(["<|end|>", *letters])
  writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * len(letters)])
  writer.add_token_merges(["! !"])
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(0)
  for key, x in tensors.items():
    writer.add_tensor(key, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


@pytest.mark.parametrize("case", CASES)
def test_the_converted_model_is_the_one_that_was_written(case, tmp_path):
  model = torch_llama(**CASES[case]).to(torch.bfloat16)
  convert_gguf(write_gguf(tmp_path / "m.gguf", model, llama_cpp(model)), tmp_path / "out")
  back, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
  )
  assert not report["missing_keys"] and not report["unexpected_keys"]
  wanted, found = model.state_dict(), back.state_dict()
  assert wanted.keys() == found.keys()
  for key in wanted:
    assert torch.equal(wanted[key], found[key]), key
  # the sizes, the rotation and the epsilon too
  single = transformers.AutoModel.from_pretrained(
    tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
  )
  original = torch_llama(**CASES[case]).model
  original.load_state_dict({k: v.float() for k, v in model.model.state_dict().items()})
  x_TD = tokens(model)
  expected = torch_states(original, x_TD)
  np.testing.assert_allclose(torch_states(single, x_TD), expected, atol=1e-4)
  np.testing.assert_allclose(states(llama_from(tmp_path / "out"), x_TD), expected, atol=1e-4)


def test_the_tokenizer_comes_along(tmp_path):
  model = torch_llama()
  convert_gguf(write_gguf(tmp_path / "m.gguf", model, llama_cpp(model)), tmp_path / "out")
  prompt = tokenize_prompt(tmp_path / "out", "<|end|>#!{items}A")
  assert (prompt.before, prompt.after) == ((0, 3, 1), (33,))
  assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_lies_beside_the_file_is_not_read(tmp_path):
  model = torch_llama()
  write_gguf(tmp_path / "m.gguf", model, llama_cpp(model))
  adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
  beside = {
    "adapter_config.json": adapter | {"base_model_name_or_path": str(tmp_path / "other")},
    "config.json": {"model_type": "mistral", "auto_map": {"AutoConfig": "evil.Config"}},
    "tokenizer_config.json": {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["e.E"]}},
  }
  convert_gguf(tmp_path / "m.gguf", tmp_path / "alone")
  for name, content in beside.items():
    (tmp_path / name).write_text(json.dumps(content))
  convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
  alone, out = (
    {f.name: f.read_bytes() for f in (tmp_path / x).iterdir()} for x in ("alone", "out")
  )
  assert alone == out


def without(name):
  return lambda x: {key: value for key, value in x.items() if key != name}


BIAS = {"blk.0.attn_q.bias": np.ones(64, np.float32)}
REFUSED = {
  "architecture": ({"kind": "gemma3"}, dict, "general.architecture is 'gemma3', expected one of"),
  "rotation": ({}, lambda x: {**x, "rope_freqs.weight": np.ones(8, np.float32)}, "rope_freqs"),
  "scaling": ({"rope__scaling__type": "yarn"}, dict, "llama.rope.scaling.type is 'yarn'"),
  "bias of llama": ({}, lambda x: x | BIAS, "holds blk.0.attn_q.bias, which would be lost"),
  "a tensor less": ({}, without("blk.1.ffn_up.weight"), "layers.1.mlp.up_proj.weight is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused(case, tmp_path):
  options, change, message = REFUSED[case]
  model = torch_llama()
  file = write_gguf(tmp_path / "m.gguf", model, change(llama_cpp(model)), **options)
  with pytest.raises(UserError, match=message) as caught:
    convert_gguf(file, tmp_path / "out")
  assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
  assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("length", [4, 100, 3_000, 20_000])
def test_a_file_that_is_cut_short_is_one_line(length, tmp_path):
  model = torch_llama()
  file = write_gguf(tmp_path / "m.gguf", model, llama_cpp(model))
  file.write_bytes(file.read_bytes()[:length])
  with pytest.raises(UserError) as caught:
    convert_gguf(file, tmp_path / "out")
  assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
  assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  monkeypatch.setattr(sys, "stderr", io.StringIO())  # pytest keeps it in a file
  model = torch_llama()
  file = write_gguf(tmp_path / "m.gguf", model, llama_cpp(model))
  with filling_disk() as full, pytest.raises(UserError, match="file too large"):
    full()
    convert_gguf(file, tmp_path / "out")
  assert os.listdir(tmp_path) == ["m.gguf"]
