"""Encodes texts with a sentence encoder or the text tower of CLIP or SigLIP."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.features.hf_encoder import HFEncoder
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.hf.pretrained import LOCAL_ONLY, explain_load_errors

CHUNK_TEXTS = 4096  # texts that are tokenized at once


class TextEncoder:
  """Encodes texts from the longest to the shortest.

  Batches then hold little padding, and a batch that is too large for the memory fails first.

  Attributes:
    order: int [E], the text that is encoded at each place.
    work: int [E], tokens of each text in this order, and `unit` the word for them.
    max_tokens: texts are cut there; num_at_limit: the number of texts that reach it.
    width: V of the vectors.
    made_from: what else determines the vectors, for the record.
  """

  def __init__(
    self,
    directory: Path,
    texts: Sequence[str],
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    batch: int,
  ):
    """Loads the model and tokenizes all texts.

    `max_length`: tokens of a text; None for the checkpoint's own limit. Raises UserError as
    HFEncoder does.
    """
    self._model = HFEncoder(
      directory, features="get_text_features", pooling=pooling, default="mean"
    )
    with explain_load_errors(directory, "tokenizer"):
      import transformers

      self._tokenizer = transformers.AutoTokenizer.from_pretrained(
        self._model.modules.transformer, **LOCAL_ONLY
      )
    self._tokenizer.padding_side = "right"
    if self._tokenizer.pad_token is None:
      self._tokenizer.pad_token = self._tokenizer.eos_token  # the mask hides it
    self.batch = batch
    self.max_tokens = self._max_length(max_length)
    self.width = self._model(self._pad(self._tokenize(["width"]))).shape[1]
    self._tokens = self._tokenize(texts)
    lengths = np.array([len(tokens) for tokens in self._tokens])
    self.order = np.argsort(-lengths, kind="stable")
    self.work, self.unit = lengths[self.order], "tokens"
    self.num_at_limit = int((lengths >= self.max_tokens).sum())
    self.device = self._model.device.type
    self.made_from: dict[str, Any] = {
      "pooling": self._model.pooling,
      "max_length": self.max_tokens,
      "batch": batch,
      "texts": json_sha256(list(texts)),
    }

  def batches(self, start: int) -> Iterator[np.ndarray]:
    """Yields float32 [B, V] in `order`, from `start` on, which is a multiple of the batch size."""
    for at in range(start, len(self.order), self.batch):
      tokens = [self._tokens[i] for i in self.order[at : at + self.batch]]
      yield self._model(self._pad(tokens))

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """The vectors of other texts, float32 [E, V], a row for each."""
    tokens = self._tokenize(texts)
    parts = [tokens[at : at + self.batch] for at in range(0, len(tokens), self.batch)]
    return np.concatenate([self._model(self._pad(part)) for part in parts])

  def _pad(self, tokens: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    # SigLIP was trained with texts padded to one length, without a mask
    one_length = self._model.config.model_type.startswith("siglip")
    padded = self._tokenizer.pad(
      {"input_ids": [x.tolist() for x in tokens]},
      padding="max_length" if one_length else "longest",
      max_length=self.max_tokens,
      return_attention_mask=not one_length,
      return_tensors="np",
    )
    return dict(padded)

  def _tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
    tokens = []
    with reporter.progress(label="tokenize", total=len(texts), unit="texts") as bar:
      for at in range(0, len(texts), CHUNK_TEXTS):
        chunk = [self._model.modules.prompt + text for text in texts[at : at + CHUNK_TEXTS]]
        if self._model.modules.lower_case:
          chunk = [text.lower() for text in chunk]
        with explain_load_errors(self._model.directory, "tokenizer"):
          ids = self._tokenizer(chunk, truncation=True, max_length=self.max_tokens)["input_ids"]
        tokens += [np.array(text_ids, np.int32) for text_ids in ids]
        bar.update(len(chunk))
    return tokens

  def _max_length(self, asked: int | None) -> int:
    """Returns the tokens where texts are cut. Raises UserError if the model cannot read `asked`."""
    positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(self._tokenizer.model_max_length, positions or self._tokenizer.model_max_length)
    if asked is not None and asked > limit:
      raise UserError(
        f"--max_length={asked}: {self._model.directory} reads at most {limit} tokens of a text"
      )
    stated = self._model.modules.max_tokens
    if asked is None and stated is not None:
      return min(limit, stated)
    if asked is None and limit > 1 << 24:
      raise UserError(f"{self._model.directory}: states no maximum length; give --max_length")
    return asked or limit
