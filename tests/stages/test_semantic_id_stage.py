"""The semantic-ID stage: what it starts from, and which parameters it keeps."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.data.synthetic import write_synthetic
from mmesid_jax.errors import UserError
from mmesid_jax.stages import semantic_id_stage
from mmesid_jax.stages.workdir import reopen_workdir

V, D, ITEMS = 6, 8, 30


@pytest.fixture
def features():
  x = 3 + 2 * np.random.default_rng(0).normal(size=(ITEMS + 1, V)).astype(np.float32)
  x[0] = 0
  return {"text": x}


def built(tiny, features, changes=()):
  config = tiny("best", {f"semantic_ids.{k}": v for k, v in dict(changes).items()})
  return semantic_id_stage.init_tables(config.semantic_ids, features, code_width=D, seed=0).model


def test_features_are_standardized_by_mean_and_one_deviation(tiny, features):
  x = np.float64(features["text"][1:])
  part = built(tiny, features).by_modality["text"]
  np.testing.assert_allclose(part.mean_V[...], x.mean(0), rtol=1e-5)
  np.testing.assert_allclose(part.scale[...], (x - x.mean(0)).std(), rtol=1e-5)
  as_they_are = built(tiny, features, {"standardize": False}).by_modality["text"]
  np.testing.assert_array_equal(as_they_are.standardize(x), np.float32(x))


@pytest.mark.parametrize("standardize", [True, False])
def test_principal_components_keep_distances_and_decode_to_the_features(
  tiny, features, standardize
):
  changes = {"quantizer.kind": "kmeans", "standardize": standardize}
  part = built(tiny, features, changes).by_modality["text"]
  x = jnp.asarray(features["text"][1:])
  z, scale = np.asarray(part.encode(x)), float(part.scale[...])
  apart = np.linalg.norm(z[:, None] - z, axis=2) * scale
  expected = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(x), axis=2)
  np.testing.assert_allclose(apart, expected, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(part.decoder(z), part.standardize(x), rtol=1e-3, atol=1e-4)


def test_the_step_that_reconstructs_best_is_kept(trained):
  lines = (trained / "semantic_ids" / "metrics.jsonl").read_text().splitlines()
  by_step = {
    line["step"]: line["valid/reconstruction"]
    for line in map(json.loads, lines)
    if "valid/reconstruction" in line
  }
  assert len(by_step) > 1
  header = semantic_id_stage.read_semantic_ids(reopen_workdir(trained)).header
  assert header["best_step"] == min(by_step, key=by_step.get)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"kind": "kmeans", "start": "random"}, "kind=kmeans has nothing but its start"),
    ({"kind": "fsq", "codes": 6}, "power of two"),
  ],
)
def test_what_cannot_be_quantised_is_refused(tiny, changes, message):
  config = tiny("best", {f"semantic_ids.quantizer.{k}": v for k, v in changes.items()})
  with pytest.raises(UserError, match=message):
    semantic_id_stage.check_quantizer(config.semantic_ids, 40)


def test_dead_codes_are_not_passed_over(tiny, tmp_path, capsys):
  """Two different rows are no work for four codes."""
  write_synthetic(tmp_path / "data", users=60, items=40, clusters=4, seed=0)
  table = np.zeros((41, V), np.float32)
  table[1:21], table[21:] = 1, 2
  np.save(tmp_path / "data" / "text.npy", table)
  config = tiny(
    changes={
      "data.source": "files",
      "data.dir": str(tmp_path / "data"),
      "features.collaborative": "",
      "stages": ("semantic_ids",),
      "semantic_ids.quantizer.kind": "kmeans",
    }
  )
  pipeline.run_pipeline(config, tmp_path / "run")
  err = capsys.readouterr().err
  assert "warning: semantic_ids: 2 codes of level 1 of text (50%), 3 codes of level 2" in err
