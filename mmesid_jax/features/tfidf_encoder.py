"""Encodes texts by their words, without a model: TF-IDF of scikit-learn, in fewer dimensions."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.digest import json_sha256

TFIDF = "tfidf"  # the name of this encoder, in place of a folder with a model
WIDTH = 512  # numbers of a vector, if the texts have as many terms
BATCH = 4096
CHARACTERS = r"\u3040-\u30ff\u3400-\u9fff"  # Chinese and Japanese: no spaces between words
# Terms are words and pairs of neighbors; a word of more than half of the texts is of the template.
VECTORIZER = {
  "token_pattern": rf"[{CHARACTERS}]|[^\W{CHARACTERS}]{{2,}}",
  "ngram_range": [1, 2],
  "max_df": 0.5,
  "sublinear_tf": True,
  "max_features": 1 << 17,
}
LEAST_TEXTS = 2  # of a term; 1 where no term is in two texts


class TfidfEncoder:
  """Encodes texts as `TextEncoder` does, but all at once.

  A vector is the text's TF-IDF, whose terms a random Gaussian map brings to WIDTH dimensions: inner
  products stay, but for errors of about 1 / sqrt(WIDTH) (Johnson and Lindenstrauss). An SVD of the
  same width drops the rare words, brands for example, that tell items of one topic apart. With no
  more terms than WIDTH, the vector is the TF-IDF itself.

  Attributes:
    order: int [E], the texts that have a known term; the others get no vector.
    work, unit, batch, width, device, made_from: as in `TextEncoder`.
  """

  def __init__(self, texts: Sequence[str]):
    """Computes all vectors. Raises UserError if no text has a word."""
    import sklearn

    matrix, self._vectorizer = _weigh_terms(texts)
    self.order = np.flatnonzero(np.diff(matrix.indptr))
    if unknown := len(texts) - len(self.order):
      reporter.info(f"{unknown:,} texts have no term in common with others, and so no vector")
    self._x_EV = _project(matrix[self.order])
    self.batch, self.width, self.device = BATCH, self._x_EV.shape[1], "cpu"
    self.work, self.unit = np.ones(len(self.order), int), "items"
    if self.width < WIDTH:
      reporter.info(f"vectors are {self.width:,} wide, not {WIDTH:,}: the texts have no more terms")
    self.made_from: dict[str, Any] = {
      "model": TFIDF,
      "terms": VECTORIZER | {"min_df": self._vectorizer.min_df},
      "width": WIDTH,
      "texts": json_sha256(list(texts)),
      "scikit-learn": sklearn.__version__,
    }

  def batches(self, start: int) -> Iterator[np.ndarray]:
    """Yields float32 [B, V] in `order`, from `start` on."""
    for at in range(start, len(self.order), self.batch):
      yield self._x_EV[at : at + self.batch]

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """The vectors of other texts, float32 [E, V]; zeros for a text without a known term."""
    return _project(self._vectorizer.transform(texts))


def _weigh_terms(texts: Sequence[str]):
  """Returns TF-IDF, sparse float32 [texts, terms] with rows of length 1 or 0, and the fitted
  vectorizer. Raises UserError."""
  from sklearn.feature_extraction.text import TfidfVectorizer

  settings = {**VECTORIZER, "ngram_range": tuple(VECTORIZER["ngram_range"]), "dtype": np.float32}
  for least in (LEAST_TEXTS, 1):
    try:
      vectorizer = TfidfVectorizer(**settings, min_df=least)
      return vectorizer.fit_transform(texts), vectorizer
    except ValueError:  # no terms; the settings themselves are valid
      continue
  raise UserError(f"--model={TFIDF}: found no words in the items' texts that tell them apart")


def _project(matrix) -> np.ndarray:
  """Returns float32 [E, V] of a sparse matrix [E, terms], as TfidfEncoder says."""
  terms = matrix.shape[1]
  if terms <= WIDTH:
    return matrix.toarray()
  gaussian = np.random.default_rng(0).standard_normal((terms, WIDTH), np.float32)
  return matrix @ (gaussian / np.float32(WIDTH**0.5))
