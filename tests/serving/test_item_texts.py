"""Vectors of new items from their texts: equal to the rows that `encode` gives the same texts."""

import json

import numpy as np
import pytest

from mmesid_jax.config.schema import default_config
from mmesid_jax.errors import UserError
from mmesid_jax.features import tfidf_encoder
from mmesid_jax.features.encode_items import EncodeSettings, encode_items
from mmesid_jax.serving.item_texts import ItemTexts
from mmesid_jax.stages.workdir import Workdir

KINDS, SCENTS = ("soap", "cream", "balm", "oil"), ("rose", "cedar", "mint", "lemon")
ITEMS = [
  {"title": f"{scent} {kind}", "brand": brand}
  for scent, kind, brand in zip(
    SCENTS * 6, sorted(KINDS * 6), ("Flora", "Dunmere") * 12, strict=True
  )
]


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  """As much of a workdir as is read; the terms are too many for the width."""
  monkeypatch.setattr(tfidf_encoder, "WIDTH", 16)
  config = default_config()
  config.features = {"collaborative": "stage", "text": "text.npy", "visual": "visual.npy"}
  write_items(tmp_path, ITEMS)
  encode(tmp_path)
  return Workdir(tmp_path, config, None, data_dir=tmp_path, feature_dir=tmp_path)


def write_items(folder, items):
  lines = [json.dumps({"item_id": n, **item}) for n, item in enumerate(items, 1)]
  (folder / "items.jsonl").write_text("\n".join(lines) + "\n")


def encode(folder, **changes):
  settings = {"template": "{title}, by {brand}", "output": folder / "text.npy", "overwrite": True}
  encode_items(EncodeSettings(data=folder, modality="text", model=None, **{**settings, **changes}))


@pytest.mark.parametrize("changes", [{}, {"dtype": "float16"}, {"normalize": False}])
def test_the_text_of_a_known_item_gives_its_row(workdir, changes):
  encode(workdir.data_dir, **changes)
  rows = np.load(workdir.data_dir / "text.npy").astype(np.float32)
  found = ItemTexts(workdir).vectors([ITEMS[4], {**ITEMS[10], "color": "green"}])
  assert found.keys() == {"text"} and found["text"].dtype == np.float32
  np.testing.assert_allclose(found["text"], rows[[5, 11]], atol=1e-5)


def test_words_that_are_not_known_count_nothing(workdir):
  known, more = {"title": "rose balm"}, {"title": "rose balm xylophone"}
  a, b = ItemTexts(workdir).vectors([known, more])["text"]
  np.testing.assert_array_equal(a, b)


def test_items_without_a_text_that_is_known_are_refused(workdir):
  texts = ItemTexts(workdir)
  with pytest.raises(UserError, match="item 2: has no title or brand, of which its vector of text"):
    texts.vectors([ITEMS[0], {"title": None, "color": "green"}])
  with pytest.raises(UserError, match="item 1: the catalogue has none of the words in 'xylophone'"):
    texts.vectors([{"title": "xylophone"}])


def test_tables_that_are_not_of_texts_are_no_encoder(workdir):
  record = workdir.data_dir / "text.json"
  content = json.loads(record.read_text())
  del content["made_from"]["template"]  # the record of a table made from images has none
  record.write_text(json.dumps(content))
  with pytest.raises(UserError, match="no table of features was made from texts"):
    ItemTexts(workdir)
  record.unlink()
  with pytest.raises(UserError, match="no table of features was made from texts"):
    ItemTexts(workdir)


def test_another_catalogue_or_another_table_is_noticed(workdir):
  write_items(workdir.data_dir, [*ITEMS[:12], *({"title": f"tea {n}"} for n in range(12))])
  with pytest.raises(UserError, match="text.json does not give its rows again; has items.jsonl"):
    ItemTexts(workdir)
  write_items(workdir.data_dir, ITEMS)
  table = np.load(workdir.data_dir / "text.npy")
  np.save(workdir.data_dir / "text.npy", table[:, :-1])
  with pytest.raises(UserError, match="does not give its rows again"):
    ItemTexts(workdir)


@pytest.mark.parametrize(
  "change",
  [{"dtype": "object"}, {"model": None}, {"template": 3}, {"normalize": None, "dtype": []}],
)
def test_a_damaged_record_is_refused(workdir, change):
  record = workdir.data_dir / "text.json"
  content = json.loads(record.read_text())
  content["made_from"] |= change
  record.write_text(json.dumps(content))
  with pytest.raises(UserError, match=r"text.json: does not say how the table was made"):
    ItemTexts(workdir)
