"""Converts a GGUF file, the form of llama.cpp, to a Hugging Face directory in bfloat16.

transformers reads the file and undoes its quantization. It leaves out without a word what its
class of the model has no place for, so what a file holds is checked first.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError, report_disk_errors
from mmesid_jax.files.atomic import check_new_directory
from mmesid_jax.hf.architecture import FAMILIES, read_architecture
from mmesid_jax.hf.gguf_header import GgufHeader, read_gguf_header
from mmesid_jax.hf.pretrained import LOCAL_ONLY, explain_load_errors, import_extra
from mmesid_jax.hf.safetensors_dir import write_checkpoint

OUTSIDE = ("token_embd.weight", "output_norm.weight", "output.weight")
BLOCK = r"blk\.\d+\.(attn_norm|attn_[qkv]|attn_output|ffn_norm|ffn_gate|ffn_up|ffn_down)\.weight"
BIAS, HEAD_NORM = r"blk\.\d+\.attn_[qkv]\.bias", r"blk\.\d+\.attn_[qk]_norm\.weight"
# Fields that change the model and that transformers does not read.
UNREAD = r"\w+\.(rope\.scal.*|attention\.sliding_window)"
REMEDY = "take the checkpoint as safetensors"


def convert_gguf(file: Path, output: Path) -> None:
  """Writes config.json, the weights in bfloat16 and the tokenizer's files.

  Args:
    file: a whole model of one of FAMILIES with its tokenizer; any type of tensor that `gguf` knows.
    output: must not exist; it appears whole or not at all.

  Raises UserError for a file that is missing or no GGUF, where torch or gguf is not installed, for
  a model of another architecture or with parts that would be lost, for a directory that exists, and
  for what the disk refuses.
  """
  check_new_directory(output)
  check_gguf(file)
  torch, _ = (import_extra(x, extra="gguf", use="reading GGUF") for x in ("torch", "gguf"))
  tokenizer, model = _load(file, torch)
  config = _config_json(model)
  with tempfile.TemporaryDirectory() as name, report_disk_errors(Path(name)):
    scratch = Path(name)
    (scratch / "config.json").write_text(json.dumps(config))
    try:
      c = read_architecture(scratch)
    except UserError as error:  # it names a file that is gone
      raise UserError(str(error).replace(str(scratch / "config.json"), str(file))) from None
    tokenizer.save_pretrained(scratch)
    if model.generation_config is not None:
      model.generation_config.save_pretrained(scratch)
    write_checkpoint(output, _tensors(model, torch), config, copy_from=scratch)
  millions = sum(p.numel() for p in model.parameters()) / 1e6
  reporter.info(
    f"{output}: {config['model_type']}, {c.layers} layers of {c.D}, {millions:.1f} M parameters in "
    f"bfloat16, a tokenizer of {len(tokenizer):,} tokens"
  )


def _load(file: Path, torch) -> tuple[Any, Any]:
  """The tokenizer and the model, out of the file alone.

  It is seen in a folder of its own, as transformers would also read an adapter, a tokenizer or a
  config.json that lies beside it.
  """
  with tempfile.TemporaryDirectory() as folder:
    alone = Path(folder, "model.gguf")
    alone.symlink_to(file.absolute())
    with explain_load_errors(file, "tokenizer"):
      import transformers

      tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, gguf_file=alone.name, **LOCAL_ONLY
      )
    with explain_load_errors(file, "model"):
      model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=alone.name,
        dtype=torch.bfloat16,
        output_loading_info=True,
        **LOCAL_ONLY,
      )
  if missing := sorted(report["missing_keys"]):
    raise UserError(
      f"{file}: {missing[0]} is missing ({len(missing)} tensors are); is it one part of several?"
    )
  return tokenizer, model


def check_gguf(file: Path) -> None:
  """Raises UserError for a header that is not whole, for an architecture that is not in FAMILIES,
  for fields and tensors that transformers would leave out, and for sizes that are not those of the
  tensors."""
  header = read_gguf_header(file)
  kind = header.fields.get("general.architecture")
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise UserError(
      f"{file}: general.architecture is {kind!r}, expected one of {', '.join(FAMILIES)}"
    )
  for key, value in header.fields.items():
    if re.fullmatch(UNREAD, key) and value not in (None, 0, "none"):
      raise UserError(f"{file}: {key} is {value!r}, which would be lost; {REMEDY}")
  parts = [BLOCK, *map(re.escape, OUTSIDE)]
  parts += [BIAS] if FAMILIES[kind].qkv_bias else []
  parts += [HEAD_NORM] if FAMILIES[kind].head_norms else []
  for name in header.shapes:
    if not re.fullmatch("|".join(parts), name):
      raise UserError(f"{file}: holds {name}, which would be lost in a {kind}; {REMEDY}")
  _check_sizes(file, header, kind)


def _check_sizes(file: Path, header: GgufHeader, kind: str) -> None:
  """Raises UserError for sizes that are not those of the tensors.

  transformers builds the model by these numbers before it looks at a tensor, so a wrong one could
  take all memory.
  """

  def matrix(name: str) -> tuple[int, int]:
    shape = header.shapes.get(name, ())
    if len(shape) != 2:
      raise UserError(
        f"{file}: {name} has {len(shape)} axes, expected 2; is it one part of several?"
      )
    return shape[1], shape[0]

  def size(name: str, absent: int | None = None) -> int:
    value = header.fields.get(f"{kind}.{name}", absent)
    if type(value) is not int or value < 1:
      raise UserError(f"{file}: {kind}.{name} is {value!r}, expected an integer > 0")
    return value

  (V, D), (F, _) = matrix("token_embd.weight"), matrix("blk.0.ffn_gate.weight")
  (query, _), (key, _) = matrix("blk.0.attn_q.weight"), matrix("blk.0.attn_k.weight")
  blocks = {name.split(".")[1] for name in header.shapes if name.startswith("blk.")}
  N = size("attention.head_count")
  H = size("attention.key_length", absent=FAMILIES[kind].head_dim or max(D // N, 1))
  for name, found, expected in (
    ("block_count", size("block_count"), len(blocks)),
    ("embedding_length", size("embedding_length"), D),
    ("feed_forward_length", size("feed_forward_length"), F),
    ("vocab_size", size("vocab_size", absent=V), V),
    ("attention.head_count", N * H, query),
    ("attention.head_count_kv", size("attention.head_count_kv", absent=N) * H, key),
  ):
    if found != expected:
      raise UserError(
        f"{file}: {kind}.{name} does not fit its tensors ({found:,} for {expected:,})"
      )


def _config_json(model) -> dict[str, Any]:
  """The content of config.json, for weights that are no longer quantized."""
  config = model.config.to_diff_dict()
  for field in ("quantization_config", "_name_or_path"):
    config.pop(field, None)
  return config | {"architectures": [type(model).__name__], "dtype": "bfloat16"}


def _tensors(model, torch) -> Iterator[tuple[str, np.ndarray]]:
  """Keys and tensors; a head that is the embedding table is left out, as transformers does."""
  for key, x in model.state_dict().items():
    if key != "lm_head.weight" or not model.config.tie_word_embeddings:
      yield key, x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
