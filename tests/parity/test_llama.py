"""Our backbones against transformers', both from the same checkpoint on disk; and back to disk."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity.llamas import (
  CASES,
  FAMILIES,
  STRETCHED,
  llama_from,
  randomise_lora,
  reloaded,
  states,
  tokens,
  torch_llama,
  torch_states,
)

from mmesid_jax.config.schema import PROJECTIONS
from mmesid_jax.hf.architecture import architecture_json, read_architecture
from mmesid_jax.hf.llama_weights import to_hugging_face
from mmesid_jax.hf.safetensors_dir import Checkpoint, write_checkpoint
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import Llama

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_equal_transformers(case, tmp_path):
  model = torch_llama(**CASES[case])
  model.save_pretrained(tmp_path)
  x_TD = tokens(model)
  np.testing.assert_allclose(
    states(llama_from(tmp_path), x_TD), torch_states(model.model, x_TD), atol=1e-4
  )


@pytest.mark.parametrize("case", ["Mistral, window", "Qwen3, window"])
def test_a_window_that_is_shorter_than_the_prompt(case, tmp_path):
  model = torch_llama(**CASES[case])
  model.save_pretrained(tmp_path)
  x_TD = tokens(model)
  np.testing.assert_allclose(
    states(llama_from(tmp_path), x_TD, prompt=15), torch_states(model.model, x_TD), atol=1e-4
  )


def test_rotation_of_older_config_files(tmp_path):
  """transformers before version 5 wrote rope_theta and rope_scaling."""
  model = torch_llama(rope_parameters=STRETCHED)
  model.save_pretrained(tmp_path)
  file = tmp_path / "config.json"
  config = json.loads(file.read_text())
  rope = config.pop("rope_parameters")
  config["rope_theta"], config["rope_scaling"] = rope.pop("rope_theta"), rope
  file.write_text(json.dumps(config))
  x_TD = tokens(model)
  np.testing.assert_allclose(
    states(llama_from(tmp_path), x_TD), torch_states(model.model, x_TD), atol=1e-4
  )


def test_shards_with_an_index(tmp_path):
  model = torch_llama()
  model.save_pretrained(tmp_path, max_shard_size="100KB")
  assert len(list(tmp_path.glob("*.safetensors"))) > 2
  x_TD = tokens(model)
  np.testing.assert_allclose(
    states(llama_from(tmp_path), x_TD), torch_states(model.model, x_TD), atol=1e-4
  )


def test_bfloat16_weights_stay_what_they_are(tmp_path):
  """bf16 in the file, float32 arithmetic on both sides: storage alone must not cost anything."""
  model = torch_llama().to(torch.bfloat16)
  model.save_pretrained(tmp_path)
  x_TD = tokens(model)
  llama = llama_from(tmp_path, weights="bfloat16")
  assert llama.blocks.mlp.gate.weight.dtype == jnp.bfloat16
  theirs = reloaded(tmp_path, dtype=torch.float32)
  np.testing.assert_allclose(states(llama, x_TD), torch_states(theirs, x_TD), atol=1e-4)


def test_bfloat16_arithmetic_is_as_near_to_float32_as_transformers_is(tmp_path):
  model = torch_llama()
  model.save_pretrained(tmp_path)
  x_TD = tokens(model)
  exact = torch_states(model.model, x_TD)
  ours = states(llama_from(tmp_path, weights="bfloat16", compute="bfloat16"), x_TD)
  theirs = torch_states(reloaded(tmp_path, dtype=torch.bfloat16), x_TD)
  assert np.abs(ours - exact).mean() < 1.5 * np.abs(theirs - exact).mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "case", ["Llama 3", "Llama 3.2, tied embeddings", "Mistral", "Qwen2", "Qwen3"]
)
def test_round_trip_is_byte_equal(dtype, case, tmp_path):
  model = torch_llama(**CASES[case]).to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / "source", max_shard_size="100KB")
  source = Checkpoint(tmp_path / "source")
  llama = llama_from(tmp_path / "source", weights=dtype)
  config = json.loads((tmp_path / "source" / "config.json").read_text())
  write_checkpoint(tmp_path / "back", to_hugging_face(llama, source), config)
  back = Checkpoint(tmp_path / "back")
  assert sorted(back.keys()) == sorted(source.keys())
  for key in source.keys():
    ours, theirs = back.read(key), source.read(key)
    assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), key


@pytest.mark.parametrize("case", FAMILIES)
def test_merged_export_loads_in_transformers(case, tmp_path):
  torch_llama(**CASES[case]).save_pretrained(tmp_path / "source")
  llama = llama_from(
    tmp_path / "source", lora=LoRAConfig(rank=2, alpha=4.0, rslora=True, targets=PROJECTIONS)
  )
  randomise_lora(llama)
  config = json.loads((tmp_path / "source" / "config.json").read_text())
  write_checkpoint(
    tmp_path / "merged", to_hugging_face(llama, Checkpoint(tmp_path / "source")), config
  )
  merged = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "merged", attn_implementation="eager"
  )
  x_TD = tokens(merged)
  np.testing.assert_allclose(states(llama, x_TD), torch_states(merged.model, x_TD), atol=1e-4)


def test_a_llama_from_scratch_loads_in_transformers(tmp_path):
  config = dataclasses.replace(
    read_architecture_of(hidden_size=32, num_attention_heads=4, head_dim=6, tmp_path=tmp_path),
    weights="trained",
  )
  llama = Llama(config, rngs=nnx.Rngs(0))
  vocabulary = ("model.embed_tokens.weight", np.zeros((5, config.D), np.float32))
  write_checkpoint(
    tmp_path / "ours",
    [vocabulary, *to_hugging_face(llama)],
    architecture_json(config, vocabulary=5, dtype="float32"),
  )
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", attn_implementation="eager"
  )
  x_TD = tokens(theirs)
  np.testing.assert_allclose(states(llama, x_TD), torch_states(theirs.model, x_TD), atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_config_that_we_write_names_the_architecture(case, tmp_path):
  """The config.json that we write gives the model that the one of transformers gives."""
  model = torch_llama(**CASES[case])
  model.save_pretrained(tmp_path / "theirs")
  llama = llama_from(tmp_path / "theirs")
  write_checkpoint(
    tmp_path / "ours",
    to_hugging_face(llama, Checkpoint(tmp_path / "theirs")),
    architecture_json(llama.config, vocabulary=model.config.vocab_size, dtype="float32"),
  )
  written = read_architecture(tmp_path / "ours")
  assert dataclasses.replace(written, weights="float32") == llama.config
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", attn_implementation="eager"
  )
  if case != "Mistral":  # without a window it is a Llama
    assert type(again) is type(model)
  x_TD = tokens(model)
  np.testing.assert_allclose(
    torch_states(again.model, x_TD), torch_states(model.model, x_TD), atol=1e-5
  )


def read_architecture_of(tmp_path, **changes):
  sizes = {
    "model_type": "llama",
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "rope_parameters": STRETCHED,
  }
  folder = tmp_path / "architecture"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(sizes | changes))
  return read_architecture(folder)
