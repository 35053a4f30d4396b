"""The prompt text around a history's item tokens, in tokens of the checkpoint's own tokenizer."""

import contextlib
import dataclasses
import pathlib
import re

import numpy as np

from mmesid_jax.config.presets import CHATS, ITEMS, PROMPTS
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.hf.chat_template import render_chats
from mmesid_jax.hf.llama_weights import EMBEDDING
from mmesid_jax.hf.pretrained import LOCAL_ONLY, explain_load_errors
from mmesid_jax.hf.safetensors_dir import Checkpoint

# Strings that are one token of the family of models that has them.
SPECIAL = re.compile(
  r"<\|[^\s<>|]+\|>|<\uff5c[^\s<>\uff5c]+\uff5c>|</?s>|<[be]os>|<(?:start|end)_of_turn>"
)


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
  tokenizer = _load_tokenizer(directory)
  with explain_load_errors(directory, "tokenizer"):
    before, after = (
      tuple(tokenizer.encode(part, add_special_tokens=False)) for part in template.split(ITEMS)
    )
  if not before:
    raise UserError(f"{directory}: its tokenizer makes no tokens of the prompt before {ITEMS}")
  return Prompt(before, after)


def fit_prompt(directory: pathlib.Path, template: str) -> str:
  """The template, or in its place the checkpoint's own chat form of a preset's prompt.

  That is taken where the tokenizer cuts a special token of the template into pieces, because it is
  another family's. A template of the user stays, and stays a preset's where the checkpoint has no
  chat template; a warning then names a prompt that fits. Raises UserError as `tokenize_prompt`.
  """
  _check_template(template)
  if not (special := sorted(set(SPECIAL.findall(template)))):
    return template
  tokenizer = _load_tokenizer(directory)
  with explain_load_errors(directory, "tokenizer"):
    pieces = {text: len(tokenizer.encode(text, add_special_tokens=False)) for text in special}
  name = next((name for name, text in PROMPTS.items() if text == template), "paper")
  own = _chat_form(tokenizer, *CHATS[name]) if max(pieces.values()) > 1 else None
  # some families write their own form with strings that are no tokens
  cut = [text for text in special if pieces[text] > 1 and text not in (own or "")]
  if not cut:
    return template
  says = f"the tokenizer of {directory} cuts {cut[0]} into {pieces[cut[0]]} pieces"
  if own and template == PROMPTS[name]:
    reporter.info(f"prompt: {says}, so it is in the checkpoint's own chat form: {own!r}")
    return own
  reporter.warn(
    f"--config.recommender.prompt.text: {says}, as it is another family's; a text that fits is "
    f"{own or CHATS['paper'][1]!r}"
  )
  return template


def _chat_form(tokenizer, system: str, user: str) -> str | None:
  """The messages as the tokenizer's chat template writes them, up to where the answer begins.

  The system's message goes before the user's where the template has no place for it. None without a
  template, and for one that does not take the user's message as it is.
  """
  if not tokenizer.chat_template:
    return None
  question = {"role": "user", "content": user}
  alone = {"role": "user", "content": f"{system}\n\n{user}".strip()}
  chats = [[{"role": "system", "content": system}, question], [alone]] if system else [[alone]]
  with contextlib.suppress(ValueError):  # none of several templates is the default
    template = tokenizer.get_chat_template()
    for text in render_chats(template, chats, tokenizer.special_tokens_map):
      if text is not None and text.count(ITEMS) == 1 and not text.startswith(ITEMS):
        return text
  return None


def _load_tokenizer(directory: pathlib.Path):
  if not has_tokenizer(directory):
    raise UserError(
      f"{directory}: holds neither tokenizer.json nor tokenizer.model; copy the checkpoint's "
      "tokenizer files there, or leave recommender.prompt.text empty for a learned prompt"
    )
  with explain_load_errors(directory, "tokenizer"):
    import transformers  # heavy, and needed for text prompts only

    return transformers.AutoTokenizer.from_pretrained(directory, **LOCAL_ONLY)


def has_tokenizer(directory: pathlib.Path) -> bool:
  """Whether the directory holds a tokenizer's files."""
  return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def estimate_prompt_lengths(template: str) -> dict[str, int]:
  """About the number of tokens of the template, when its tokenizer's files are missing.

  Counts as Llama 3's tokenizer does: every special token, word, number and run of punctuation is
  one. For config.PROMPTS this gives the true counts.

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
