"""A tiny random Llama as a Hugging Face directory with a tokenizer, made without torch."""

import pathlib
from collections.abc import Sequence

import numpy as np
from flax import nnx

from mmesid_jax.hf.architecture import architecture_json
from mmesid_jax.hf.llama_weights import EMBEDDING, to_hugging_face
from mmesid_jax.hf.safetensors_dir import write_checkpoint
from mmesid_jax.models.llama import Llama, LlamaConfig

SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def write_tiny_checkpoint(directory: pathlib.Path, *, dtype="bfloat16", **sizes) -> LlamaConfig:
  """Random weights, normal as `transformers` draws them; embeddings tied. Returns the sizes."""
  config = LlamaConfig(**{"layers": 2, "D": 64, "F": 128, "N": 4, "K": 2, "H": 16, **sizes})
  llama = Llama(config, rngs=nnx.Rngs(0))
  tokenizer = write_tokenizer(directory.with_name(directory.name + "-tokenizer"))
  rows = 256 + len(SPECIAL)
  table = np.random.default_rng(0).normal(size=(rows, config.D)).astype(np.float32) * 0.02
  tensors = [(EMBEDDING, table), *to_hugging_face(llama)]
  write_checkpoint(
    directory,
    ((key, x.astype(dtype)) for key, x in tensors),
    architecture_json(config, vocabulary=rows, dtype=dtype),
    copy_from=tokenizer,
  )
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
