"""Vectors of directories of sentence-transformers equal those of that library."""

import json

import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.features.encode_items import EncodeSettings, encode_items

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
library = pytest.importorskip("sentence_transformers")
models = pytest.importorskip("sentence_transformers.models")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

WORDS = "lip balm rose oil hand cream nail lacquer shampoo soap cedar comb brush".split()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  """A small BERT with the tokenizer of its words."""
  folder = tmp_path_factory.mktemp("bert")
  (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]) + "\n")
  tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
  tokenizer.save_pretrained(folder)
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=len(tokenizer),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
  )
  transformers.BertModel(config).save_pretrained(folder)
  return folder


def write_items(folder):
  """Texts of 1 to 40 words; returns them."""
  random = np.random.default_rng(0)
  texts = [" ".join(random.choice(WORDS, random.integers(1, 41))) for _ in range(20)]
  lines = [json.dumps({"item_id": i, "title": text}) for i, text in enumerate(texts, 1)]
  (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
  return texts


def encode(data, model, **changes):
  settings = {"modality": "text", "output": data / "text.npy", "batch": 8, "normalize": False}
  encode_items(EncodeSettings(data=data, model=model, **{**settings, **changes}))
  return np.load(data / "text.npy", allow_pickle=False)[1:]


def saved(folder, bert, *modules, max_length=None, **options):
  parts = (models.Transformer(str(bert), max_seq_length=max_length), *modules)
  model = library.SentenceTransformer(modules=list(parts), device="cpu", **options)
  model.save(str(folder))
  return model


@pytest.mark.parametrize(
  "modes",
  ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("lasttoken", "cls")],
)
def test_every_pooling_is_that_of_the_library(bert, tmp_path, modes):
  model = saved(tmp_path / "model", bert, models.Pooling(16, pooling_mode=modes))
  expected = model.encode(write_items(tmp_path))
  np.testing.assert_allclose(encode(tmp_path, tmp_path / "model"), expected, atol=2e-6)


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "ReLU", "Sigmoid", "GELU"])
def test_layers_length_and_prompt_are_those_of_the_library(bert, tmp_path, activation, capsys):
  torch.manual_seed(1)
  modules = (
    models.Pooling(16, pooling_mode="cls"),
    models.Dense(16, 8, activation_function=getattr(torch.nn, activation)()),
    models.Normalize(),
  )
  prompts = {"prompts": {"doc": "soap: "}, "default_prompt_name": "doc"}
  model = saved(tmp_path / "model", bert, *modules, max_length=12, **prompts)
  expected = model.encode(write_items(tmp_path))
  np.testing.assert_allclose(encode(tmp_path, tmp_path / "model"), expected, atol=2e-6)
  out = capsys.readouterr().out
  assert f"pooling cls, Dense 16 to 8 ({activation}), Normalize; every text begins" in out
  assert "texts reach 12 tokens" in out


def test_a_pooling_that_is_given_wins_and_the_layers_stay(bert, tmp_path, capsys):
  dense = models.Dense(16, 8)
  saved(tmp_path / "model", bert, models.Pooling(16, pooling_mode="cls"), dense)
  mean = models.Pooling(16, pooling_mode="mean")
  expected = saved(tmp_path / "other", bert, mean, dense).encode(write_items(tmp_path))
  found = encode(tmp_path, tmp_path / "model", pooling="mean")
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert "pooling mean (not cls, by --pooling), Dense 16 to 8" in capsys.readouterr().out

  pooling = tmp_path / "model" / "1_Pooling" / "config.json"
  pooling.write_text(json.dumps({"pooling_mode": "strange"}))
  with pytest.raises(UserError, match="text.npy: made from something else"):
    encode(tmp_path, tmp_path / "model", pooling="mean")  # its files are part of the record
  with pytest.raises(UserError, match="the pooling 'strange' is not implemented; choose one with"):
    encode(tmp_path, tmp_path / "model", overwrite=True)
  np.testing.assert_allclose(
    encode(tmp_path, tmp_path / "model", pooling="mean", overwrite=True), expected, atol=2e-6
  )
