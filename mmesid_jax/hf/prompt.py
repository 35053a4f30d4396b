"""The prompt text around a history's item tokens, in tokens of the checkpoint's own tokenizer."""

import dataclasses
import pathlib
import re

import numpy as np

from mmesid_jax.config.presets import ITEMS
from mmesid_jax.errors import UserError
from mmesid_jax.hf.llama_weights import EMBEDDING
from mmesid_jax.hf.pretrained import LOCAL_ONLY, explain_load_errors
from mmesid_jax.hf.safetensors_dir import Checkpoint


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Token ids before the items (in every user's trunk) and after them (in a target's response)."""

  before: tuple[int, ...]
  after: tuple[int, ...]


def tokenize_prompt(directory: pathlib.Path, template: str) -> Prompt:
  """The template's tokens; no special tokens are added, and no chat template is applied.

  Raises UserError for a template without exactly one {items} or with nothing before it, and for a
  directory without tokenizer files.
  """
  _check_template(template)
  if not has_tokenizer(directory):
    raise UserError(
      f"{directory}: holds neither tokenizer.json nor tokenizer.model; copy the checkpoint's "
      "tokenizer files there, or leave recommender.prompt.text empty for a learned prompt"
    )
  with explain_load_errors(directory, "tokenizer"):
    import transformers  # heavy, and needed for text prompts only

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **LOCAL_ONLY)
    before, after = (
      tuple(tokenizer.encode(part, add_special_tokens=False)) for part in template.split(ITEMS)
    )
  return Prompt(before, after)


def has_tokenizer(directory: pathlib.Path) -> bool:
  """Whether the directory holds a tokenizer's files."""
  return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def estimate_prompt_lengths(template: str) -> dict[str, int]:
  """About the number of tokens of the template, when its tokenizer's files are missing.

  Counts as Llama 3's tokenizer does: every special token, word, number and run of punctuation is
  one. For config.PROMPTS["paper"] this gives the true counts, 34 and 5.

  Returns "length", before the items, and "response", after them. Raises UserError as
  `tokenize_prompt` does.
  """
  _check_template(template)
  piece = r"<\|\w+\|>|'\w+| ?\w+| ?(?:(?!<\|)[^\s\w])+|\s+"
  before, after = (len(re.findall(piece, part)) for part in template.split(ITEMS))
  return {"length": before, "response": after}


def _check_template(template: str) -> None:
  if template.count(ITEMS) != 1 or template.startswith(ITEMS):
    raise UserError(
      f"--config.recommender.prompt.text={template!r}: expected text, {ITEMS} once, and text or "
      "nothing after it"
    )


def read_embeddings(checkpoint: Checkpoint, tokens: tuple[int, ...]) -> np.ndarray:
  """The tokens' rows of the embedding table, float32 [tokens, D]; no other rows are read.

  Raises UserError for a checkpoint without the table, and for a token that is not in it.
  """
  if EMBEDDING not in checkpoint.keys():
    raise UserError(f"{checkpoint.directory}: {EMBEDDING} is missing, which the prompt needs")
  checkpoint.require_floats(EMBEDDING)
  rows = checkpoint.shape(EMBEDDING)[0]
  if tokens and max(tokens) >= rows:
    raise UserError(
      f"{checkpoint.directory}: the tokenizer gives token {max(tokens)}, the table has {rows} rows"
    )
  D = checkpoint.shape(EMBEDDING)[1]
  rows_1D = [checkpoint.read(EMBEDDING, slice(t, t + 1), slice(None)) for t in tokens]
  return np.concatenate(rows_1D).astype(np.float32) if rows_1D else np.zeros((0, D), np.float32)
