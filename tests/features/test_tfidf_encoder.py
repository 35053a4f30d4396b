"""Text vectors without a model, against TF-IDF in numpy."""

import collections
import json
import re
import sys

import numpy as np
import pytest
from commands import refused

from mmesid_jax.errors import UserError
from mmesid_jax.features import tfidf_encoder
from mmesid_jax.features.encode_items import EncodeSettings, encode_items
from mmesid_jax.features.tfidf_encoder import TfidfEncoder

TEXTS = [
  "Rose hand cream",
  "Rose lip balm, rose scent",
  "Cedar lip balm",
  "Hand cream with cedar oil",
  "Night oil",
]


def terms_of(text: str) -> list[str]:
  words = re.findall(r"\b\w\w+\b", text.lower())
  return [*words, *map(" ".join, zip(words, words[1:], strict=False))]


def tfidf(texts: list[str], least: int = 2) -> np.ndarray:
  """[texts, terms] in float64: (1 + ln count) * (1 + ln((1 + texts) / (1 + texts with it)))."""
  counts = [collections.Counter(terms_of(text)) for text in texts]
  texts_with = collections.Counter(term for count in counts for term in count)
  terms = sorted(term for term, n in texts_with.items() if least <= n <= len(texts) / 2)
  matrix = np.zeros((len(texts), len(terms)))
  for row, count in enumerate(counts):
    for column, term in enumerate(terms):
      if count[term]:
        rarity = 1 + np.log((1 + len(texts)) / (1 + texts_with[term]))
        matrix[row, column] = (1 + np.log(count[term])) * rarity
  length = np.linalg.norm(matrix, axis=1, keepdims=True)
  return matrix / np.maximum(length, 1e-300)


def vectors(texts) -> np.ndarray:
  return np.concatenate([*TfidfEncoder(texts).batches(0)])


def long_texts() -> list[str]:
  rng = np.random.default_rng(1)
  return [" ".join(f"w{n}" for n in rng.zipf(1.5, 12) % 300) for _ in range(200)]


def test_few_terms_are_the_dimensions():
  np.testing.assert_allclose(vectors(TEXTS), tfidf(TEXTS), atol=1e-6)


def test_many_terms_are_projected_and_inner_products_stay(monkeypatch):
  monkeypatch.setattr(tfidf_encoder, "WIDTH", 64)
  exact = tfidf(long_texts())
  found = vectors(long_texts())
  assert found.shape == (200, 64) and found.dtype == np.float32 and exact.shape[1] > 64
  errors = (found @ found.T - exact @ exact.T)[np.triu_indices(200, k=1)]
  assert abs(errors.mean()) < 0.02 and errors.std() < 1.2 / 64**0.5
  squares = np.square(found).sum(1)  # of lengths that were 1
  assert abs(squares.mean() - 1) < 0.1


def test_characters_of_chinese_are_words():
  found = vectors(["红茶 Tea", "绿茶 tea", "绿豆", "Pot"] + ["cup"] * 4)
  same = found @ found.T
  assert same[0, 1] > 0.1 and same[1, 2] > 0.1 and same[0, 2] == 0


def write_items(folder, titles):
  lines = [{"item_id": i, "title": title} for i, title in enumerate(titles, start=1)]
  (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def encode(folder, **changes):
  own = {"modality": "text", "output": folder / "text.npy", "template": "{title}"}
  encode_items(EncodeSettings(data=folder, model=None, **{**own, **changes}))
  return np.load(folder / "text.npy")


@pytest.fixture
def without_torch(monkeypatch):
  for name in ("torch", "PIL", "transformers"):
    monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError


def test_the_table_is_like_that_of_other_encoders(tmp_path, without_torch, capsys):
  write_items(tmp_path, [*TEXTS[:2], None, *TEXTS[2:], "Unlike others"])
  found = encode(tmp_path)
  assert found.dtype == np.float32 and len(found) == 8 and not found[0].any()
  known = [1, 2, 4, 5, 6]
  expected = tfidf([*TEXTS, "Unlike others"])[:5]
  np.testing.assert_allclose(found[known] @ found[known].T, expected @ expected.T, atol=1e-5)
  for unknown in (3, 7):
    np.testing.assert_allclose(found[unknown], found[known].mean(0), atol=1e-6)
  record = json.loads((tmp_path / "text.json").read_text())
  assert (record["model"], record["missing"], record["num_items"]) == ("tfidf", 2, 7)
  out = capsys.readouterr().out
  assert "1 texts have no term in common with others" in out
  assert f"vectors are {expected.shape[1]} wide, not 512" in out
  encode(tmp_path)
  assert "up to date" in capsys.readouterr().out


def test_missing_may_be_zeros_and_types_may_be_half(tmp_path):
  write_items(tmp_path, [*TEXTS, None])
  found = encode(tmp_path, missing="zero", dtype="float16", normalize=False)
  assert found.dtype == np.float16 and not found[6].any() and found[1:6].any(1).all()


def test_the_same_texts_give_the_same_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr(tfidf_encoder, "WIDTH", 4)
  write_items(tmp_path, TEXTS)
  assert encode(tmp_path).shape == (6, 4)  # projected
  first = (tmp_path / "text.npy").read_bytes()
  (tmp_path / "text.npy").unlink()
  encode(tmp_path)
  assert (tmp_path / "text.npy").read_bytes() == first


def test_other_tables_are_kept(tmp_path):
  write_items(tmp_path, TEXTS)
  np.save(tmp_path / "text.npy", np.ones((6, 2)))
  with pytest.raises(UserError, match="text.npy: does not say what it was made from"):
    encode(tmp_path)
  assert encode(tmp_path, overwrite=True).shape == (6, tfidf(TEXTS).shape[1])
  write_items(tmp_path, TEXTS[::-1])
  with pytest.raises(UserError, match="text.npy: made from something else: texts was"):
    encode(tmp_path)


def test_where_no_word_is_shared_every_word_counts(tmp_path):
  write_items(tmp_path, ["tea", "cup", "pot"])
  found = encode(tmp_path)
  np.testing.assert_allclose(found[1:] @ found[1:].T, np.eye(3), atol=1e-6)


@pytest.mark.parametrize(
  "titles", [["a", "! ?"], [" ", None], [None, None], ["same words", "Same words"]]
)
def test_texts_without_a_word_are_refused(tmp_path, titles):
  write_items(tmp_path, titles)
  with pytest.raises(UserError, match="no item has text for|found no words in the items' texts"):
    encode(tmp_path)
  assert sorted(file.name for file in tmp_path.iterdir()) == ["items.jsonl"]


def test_flags_that_mean_nothing_here_are_refused():
  tfidf_flags = ("--data=nowhere", "--modality=text", "--model=tfidf")
  for flag in ("--pooling=mean", "--max_length=64", "--batch=8", "--images=x", "--key=asin"):
    line = refused("encode", *tfidf_flags, flag)
    assert f"{flag.split('=')[0]}: not with --model=tfidf" in line
  line = refused("encode", "--data=nowhere", "--modality=visual", "--model=tfidf")
  assert "--modality=visual: not with --model=tfidf" in line
  assert "nowhere/items.jsonl: no such file" in refused("encode", *tfidf_flags)
  # a folder of this name
  assert "items.jsonl: no such file" in refused("encode", *tfidf_flags[:2], "--model=./tfidf")


def test_large_texts_are_in_several_batches(monkeypatch):
  monkeypatch.setattr(tfidf_encoder, "BATCH", 2)
  encoder = TfidfEncoder(TEXTS)
  assert [len(x) for x in encoder.batches(2)] == [2, 1]
