"""Vectors of texts, by a sentence encoder or the text tower of CLIP or SigLIP."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmesid_jax.errors import UserError
from mmesid_jax.features.hf_encoder import LOCAL_ONLY, HFEncoder, digest_json, explain_load_errors

CHUNK_TEXTS = 4096  # texts that are cut into tokens at once


class TextEncoder:
  """Encodes texts from the longest to the shortest, so that a batch holds little padding and what
  does not fit into memory shows at once."""

  def __init__(
    self,
    directory: Path,
    texts: Sequence[str],
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    batch: int,
  ):
    """max_length: tokens of a text, the checkpoint's own limit when None. Raises UserError as
    Pretrained does."""
    self._model = HFEncoder(
      directory, features="get_text_features", pooling=pooling, default="mean"
    )
    with explain_load_errors(directory, "tokenizer"):
      import transformers

      self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **LOCAL_ONLY)
    self._tokenizer.padding_side = "right"
    if self._tokenizer.pad_token is None:
      self._tokenizer.pad_token = self._tokenizer.eos_token  # masked wherever it pads
    self.batch = batch
    self.limit = self._max_length(max_length)  # tokens of the longest text that is not cut
    self.width = self._model(self._padded(self._tokenised(["width"]))).shape[1]
    self._tokens = self._tokenised(texts)
    lengths = np.array([len(tokens) for tokens in self._tokens])
    self.order = np.argsort(-lengths, kind="stable")  # int [N], which text comes when
    self.work, self.unit = lengths[self.order], "tokens"  # [N]
    self.at_limit = int((lengths >= self.limit).sum())
    self.device = self._model.device.type
    self.made_from: dict[str, Any] = {
      "pooling": self._model.pooling,
      "max_length": self.limit,
      "batch": batch,
      "texts": digest_json(list(texts)),
    }

  def batches(self, start: int) -> Iterator[np.ndarray]:
    """float32 [B, V] each, in `order` from `start` on, a multiple of the batch."""
    for at in range(start, len(self.order), self.batch):
      tokens = [self._tokens[i] for i in self.order[at : at + self.batch]]
      yield self._model(self._padded(tokens))

  def _padded(self, tokens: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    # SigLIP was trained on texts of one length, padding unmasked
    one_length = self._model.config.model_type.startswith("siglip")
    padded = self._tokenizer.pad(
      {"input_ids": [x.tolist() for x in tokens]},
      padding="max_length" if one_length else "longest",
      max_length=self.limit,
      return_attention_mask=not one_length,
      return_tensors="np",
    )
    return dict(padded)

  def _tokenised(self, texts: Sequence[str]) -> list[np.ndarray]:
    tokens = []
    with tqdm(total=len(texts), desc="tokens", unit="texts", delay=3, leave=False) as bar:
      for at in range(0, len(texts), CHUNK_TEXTS):
        chunk = list(texts[at : at + CHUNK_TEXTS])
        found = self._tokenizer(chunk, truncation=True, max_length=self.limit)["input_ids"]
        tokens += [np.array(ids, np.int32) for ids in found]
        bar.update(len(chunk))
    return tokens

  def _max_length(self, asked: int | None) -> int:
    positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
    own = min(self._tokenizer.model_max_length, positions or self._tokenizer.model_max_length)
    if asked is not None and asked > own:
      raise UserError(
        f"--max_length={asked}: {self._model.directory} reads at most {own} tokens of a text"
      )
    if asked is None and own > 1 << 24:
      raise UserError(f"{self._model.directory}: names no longest text; give --max_length")
    return asked or own
