"""The prompt around a history's item tokens, as the checkpoint's own tokenizer cuts it."""

import dataclasses
import pathlib
import re

import numpy as np

from mmesid_jax.config.presets import ITEMS
from mmesid_jax.errors import UserError
from mmesid_jax.hf.llama_weights import EMBEDDING
from mmesid_jax.hf.safetensors_dir import Checkpoint


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Token ids before the items (every user's trunk) and behind them (a target's response)."""

  before: tuple[int, ...]
  behind: tuple[int, ...]


def tokenize_prompt(directory: pathlib.Path, template: str) -> Prompt:
  """The literal template, no special tokens added, no chat template applied.

  Raises UserError for a template without exactly one {items} or with nothing before it, and for a
  directory without tokenizer files.
  """
  _check(template)
  if not has_tokenizer(directory):
    raise UserError(
      f"{directory}: holds neither tokenizer.json nor tokenizer.model; copy the checkpoint's "
      "tokenizer files there, or leave recommender.prompt.text empty for a learned prompt"
    )
  import transformers  # heavy, and needed for text prompts only

  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
  except Exception as error:  # many kinds, for files that are damaged or of another model
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    raise UserError(f"{directory}: its tokenizer does not load ({reason})") from error
  before, behind = (
    tuple(tokenizer.encode(part, add_special_tokens=False)) for part in template.split(ITEMS)
  )
  return Prompt(before, behind)


def has_tokenizer(directory: pathlib.Path) -> bool:
  """Whether the directory holds a tokenizer's files."""
  return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def estimate_prompt_lengths(template: str) -> dict[str, int]:
  """About how many tokens Llama 3's tokenizer makes of the template, for want of its files:
  "length" before the items, "response" behind them; every special token, word, number and run of
  punctuation is one. Of config.PROMPTS["paper"], 34 and 5, it is the true count. Raises UserError
  as `tokenise` does."""
  _check(template)
  piece = r"<\|\w+\|>|'\w+| ?\w+| ?(?:(?!<\|)[^\s\w])+|\s+"
  before, behind = (len(re.findall(piece, part)) for part in template.split(ITEMS))
  return {"length": before, "response": behind}


def _check(template: str) -> None:
  if template.count(ITEMS) != 1 or template.startswith(ITEMS):
    raise UserError(
      f"--config.recommender.prompt.text={template!r}: expected text, {ITEMS} once, and text or "
      "nothing behind it"
    )


def read_embeddings(checkpoint: Checkpoint, tokens: tuple[int, ...]) -> np.ndarray:
  """float32 [tokens, D]; only these rows of the table are read. Raises UserError."""
  if EMBEDDING not in checkpoint.keys():
    raise UserError(f"{checkpoint.directory}: {EMBEDDING} is missing, which the prompt needs")
  rows = checkpoint.shape(EMBEDDING)[0]
  if tokens and max(tokens) >= rows:
    raise UserError(
      f"{checkpoint.directory}: the tokenizer gives token {max(tokens)}, the table has {rows} rows"
    )
  D = checkpoint.shape(EMBEDDING)[1]
  read = [checkpoint.read(EMBEDDING, slice(t, t + 1), slice(None)) for t in tokens]
  return np.concatenate(read).astype(np.float32) if read else np.zeros((0, D), np.float32)
