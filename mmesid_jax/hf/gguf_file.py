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
from mmesid_jax.hf.architecture import FAMILIES, read_architecture
from mmesid_jax.hf.pretrained import LOCAL_ONLY, explain_load_errors, import_extra
from mmesid_jax.hf.safetensors_dir import check_new_directory, write_checkpoint

MAGIC = b"GGUF"
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
  _check_magic(file)
  torch, gguf = (import_extra(x, extra="gguf", use="reading GGUF") for x in ("torch", "gguf"))
  _check_contents(file, gguf)
  with explain_load_errors(file, "tokenizer"):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
      file.parent, gguf_file=file.name, **LOCAL_ONLY
    )
  with explain_load_errors(file, "model"):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
      *(file.parent,),
      gguf_file=file.name,
      dtype=torch.bfloat16,
      output_loading_info=True,
      **LOCAL_ONLY,
    )
  if missing := sorted(report["missing_keys"]):
    raise UserError(
      f"{file}: {missing[0]} is missing ({len(missing)} tensors are); is it one part of several?"
    )
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


def _check_magic(file: Path) -> None:
  if not file.is_file():
    raise UserError(f"{file}: no such file; name a GGUF file")
  with file.open("rb") as opened:
    start = opened.read(len(MAGIC))
  if start != MAGIC:
    raise UserError(f"{file}: is no GGUF file; it begins with {start!r}, expected {MAGIC!r}")


def _check_contents(file: Path, gguf) -> None:
  """Raises UserError for an architecture that is not in FAMILIES, and for fields and tensors that
  transformers would leave out."""
  with explain_load_errors(file, "header"):
    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items() if _is_small(key)}
    names = [tensor.name for tensor in reader.tensors]
  kind = fields.get("general.architecture")
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise UserError(
      f"{file}: general.architecture is {kind!r}, expected one of {', '.join(FAMILIES)}"
    )
  for key, value in fields.items():
    if re.fullmatch(UNREAD, key) and value not in (None, 0, "none"):
      raise UserError(f"{file}: {key} is {value!r}, which would be lost; {REMEDY}")
  parts = [BLOCK, *map(re.escape, OUTSIDE)]
  parts += [BIAS] if FAMILIES[kind].qkv_bias else []
  parts += [HEAD_NORM] if FAMILIES[kind].head_norms else []
  for name in names:
    if not re.fullmatch("|".join(parts), name):
      raise UserError(f"{file}: holds {name}, which would be lost in a {kind}; {REMEDY}")


def _is_small(key: str) -> bool:
  return not key.startswith("tokenizer.")  # lists of all tokens


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
