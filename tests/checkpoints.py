"""A tiny random model as a Hugging Face directory with a tokenizer, made without torch; and a
configuration that trains on it."""

import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np
from conftest import TINY
from flax import nnx

from mmesid_jax.hf.architecture import architecture_json
from mmesid_jax.hf.llama_weights import EMBEDDING, to_hugging_face
from mmesid_jax.hf.safetensors_dir import write_checkpoint
from mmesid_jax.models.llama import Llama, LlamaConfig

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "beauty_llama3_8b.py"
FROM_CHECKPOINT = ("width", "layers", "heads", "kv_heads", "head_width", "mlp_width")
CHANGES = {
  **{k: v for k, v in TINY.items() if k.removeprefix("recommender.") not in FROM_CHECKPOINT},
  "recommender.row_length": 64,
}
FAMILIES = {  # model_type -> what its LlamaConfig has besides Llama's parts
  "llama": {},
  "mistral": {"window": 5},
  "qwen2": {"qkv_bias": True},
  "qwen3": {"head_norms": True},
}
SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def write_tiny_checkpoint(directory: pathlib.Path, *, dtype="bfloat16", **sizes) -> LlamaConfig:
  """Random weights, normal as `transformers` draws them, but biases are not 0 and norms of heads
  not 1; embeddings tied. Returns the sizes."""
  config = LlamaConfig(**{"layers": 2, "D": 64, "F": 128, "N": 4, "K": 2, "H": 16, **sizes})
  llama = Llama(config, rngs=nnx.Rngs(0))
  tokenizer = write_tokenizer(directory.with_name(directory.name + "-tokenizer"))
  rows = 256 + len(SPECIAL)
  rng = np.random.default_rng(0)
  table = rng.normal(size=(rows, config.D)).astype(np.float32) * 0.02
  tensors = [(EMBEDDING, table)]
  for key, x in to_hugging_face(llama):
    is_new = key.endswith((".bias", "q_norm.weight", "k_norm.weight"))
    tensors.append((key, x + 0.3 * rng.normal(size=x.shape).astype(x.dtype) if is_new else x))
  write_checkpoint(
    directory,
    ((key, x.astype(dtype)) for key, x in tensors),
    architecture_json(config, vocabulary=rows, dtype=dtype),
    copy_from=tokenizer,
  )
  return config


def llama3(base, preset="best", **changes):
  """configs/beauty_llama3_8b.py on a tiny catalogue and a tiny checkpoint."""
  spec = importlib.util.spec_from_file_location("llama3", CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(preset)
  config.update_from_flattened_dict({**CHANGES, "recommender.backbone.checkpoint": str(base)})
  config.update_from_flattened_dict({f"recommender.{k}": v for k, v in changes.items()})
  return config


def write_tokenizer(folder: pathlib.Path, special: Sequence[str] = SPECIAL) -> pathlib.Path:
  """Special tokens, by default Llama 3's, over single bytes."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers

  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokenizer = tokenizers.Tokenizer(
    models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
  )
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(list(special))
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder
