"""Feature tables of any size: rows that come along train the same model as tables on the device."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.residual_quantizer import QuantizerConfig
from mmesid_jax.stages import item_batches
from mmesid_jax.stages.item_batches import FeatureTables, ItemRows, item_ids, make_item_batch
from mmesid_jax.stages.semantic_id_stage import SEMANTIC_IDS
from mmesid_jax.stages.workdir import open_workdir


def text_only(trained, tiny, folder: pathlib.Path, text: np.ndarray, **changes):
  """A configuration of the semantic-ID stage alone, on this table."""
  source = pathlib.Path(shutil.copytree(trained / "synthetic", folder / "data"))
  np.save(source / "text.npy", text)
  changes = {"data.source": "files", "data.dir": str(source), **changes}
  changes |= {"features.collaborative": "", "recommender.codes": "codebooks"}
  return tiny(changes={"stages": ("semantic_ids",), **changes})


def test_rows_from_disk_train_the_same_model(trained, tiny, tmp_path, monkeypatch):
  """In chunks and without a table on the device: codes and every parameter are the same."""
  text_IV = np.random.default_rng(0).normal(size=(41, 8)).astype(np.float16)
  config = text_only(trained, tiny, tmp_path, text_IV)
  found = []
  for path, limit in (
    (tmp_path / "resident", item_batches.DEVICE_TABLE_BYTES),
    (tmp_path / "rows", 0),
  ):
    monkeypatch.setattr(item_batches, "DEVICE_TABLE_BYTES", limit)
    monkeypatch.setattr(item_batches, "CHUNK", 41 if limit else 7)
    pipeline.run_pipeline(config, path)
    found.append(read_artifact(path / "semantic_ids.safetensors", "semantic_ids")[0])
  resident, rows = found
  assert resident.keys() == rows.keys()
  for name, x in resident.items():
    np.testing.assert_allclose(rows[name], x, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_a_batch_holds(monkeypatch):
  features = {"text": np.arange(12, dtype=np.float16).reshape(4, 3)}
  size = {"hidden": (4,), "D": 2, "quantizer": QuantizerConfig(1, 2)}
  model = MMRQVAE({"text": 3}, rngs=item_batches.nnx.Rngs(0), **size)
  item_B = np.array([3, 1])
  expected = np.float32(features["text"][item_B])
  for limit, kind in ((24, np.ndarray), (23, ItemRows)):
    monkeypatch.setattr(item_batches, "DEVICE_TABLE_BYTES", limit)
    batch, held = make_item_batch(features, item_B), FeatureTables(model, features)
    assert isinstance(batch, kind) and len(held.feature_IV) == (kind is np.ndarray)
    np.testing.assert_array_equal(item_ids(batch), item_B)
    found = held.features(batch)["text"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_mostly_one_row_trains_without_nan(trained, tiny, tmp_path):
  text_IV = np.random.default_rng(0).normal(size=(41, 8)).astype(np.float32)
  text_IV[3:] = text_IV[3]
  pipeline.run_pipeline(text_only(trained, tiny, tmp_path, text_IV), tmp_path / "run")
  found, header = read_artifact(tmp_path / "run" / "semantic_ids.safetensors", "semantic_ids")
  assert all(np.isfinite(x).all() for x in found.values())
  assert header["health"]["text"]["largest_group"] >= 38
  lines = (tmp_path / "run" / "semantic_ids" / "metrics.jsonl").read_text().splitlines()
  for metrics in map(json.loads, lines):
    assert all(np.isfinite(value) for value in metrics.values())


def test_fewer_items_than_codes_are_refused_before_anything_trains(tiny, tmp_path):
  config = tiny(changes={"semantic_ids.quantizer.codes": 41})
  with pytest.raises(UserError, match=r"semantic_ids\.quantizer\.codes=41: more than the 40 items"):
    pipeline.run_pipeline(config, tmp_path)
  assert not list(tmp_path.rglob("*.safetensors"))


def test_an_items_file_that_changed_is_refused_before_the_stage_trains(trained, tiny, tmp_path):
  """The health of the codes reads categories, which comes after the training."""
  text_IV = np.random.default_rng(0).normal(size=(41, 8)).astype(np.float32)
  config = text_only(trained, tiny, tmp_path, text_IV)
  workdir = open_workdir(config, tmp_path / "run")
  items = tmp_path / "data" / "items.jsonl"
  items.write_text("".join(items.read_text().splitlines(keepends=True)[:-1]))
  with pytest.raises(UserError, match=r"items\.jsonl: 39 items; .* prepared for 40"):
    SEMANTIC_IDS.train(workdir)
  assert not workdir.folder("semantic_ids").exists()
