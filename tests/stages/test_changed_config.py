"""A workdir whose config.json says something else than its artifacts were trained with."""

import json
import pathlib
import shutil

import pytest

from mmesid_jax import pipeline
from mmesid_jax.config.saved import read_config
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.serving.refreshed_counts import refresh_counts
from mmesid_jax.stages.new_item_codes import encode_new_items
from mmesid_jax.stages.workdir import reopen_workdir


@pytest.fixture
def path(blended, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(blended, tmp_path / "copy"))


def change(path: pathlib.Path, key: str, value) -> None:
  config = json.loads((path / "config.json").read_text())
  *sections, name = key.split(".")
  section = config
  for part in sections:
    section = section[part]
  section[name] = value
  (path / "config.json").write_text(json.dumps(config))


def recommend(path: pathlib.Path) -> None:
  Recommender.load(path)


def evaluate(path: pathlib.Path) -> None:
  pipeline.report_ranks(reopen_workdir(path), "test")


def encode(path: pathlib.Path) -> None:
  config = read_config(path)
  encode_new_items(path, config, {"text": path / "synthetic" / "text.npy"})


def refresh(path: pathlib.Path) -> None:
  refresh_counts(path, path / "synthetic")


@pytest.mark.parametrize(
  ("work", "key", "value", "file"),
  [
    (recommend, "recommender.rope_theta", 3.0, "recommender"),
    (recommend, "recommender.norm_eps", 0.5, "recommender"),
    (evaluate, "recommender.norm_eps", 0.5, "recommender"),
    (evaluate, "collaborative.heads", 4, "collaborative"),
    (evaluate, "counts.followers", 7, "counts"),
    (evaluate, "blend.network", False, "blend"),
    (refresh, "blend.network", False, "blend"),
    (encode, "semantic_ids.standardize", False, "semantic_ids"),
    (recommend, "seed", 5, "recommender"),
  ],
)
def test_the_key_and_both_values_are_named(path, work, key, value, file):
  figures = (path / "evaluation.json").read_bytes()
  trained = read_config(path)
  for name in key.split("."):
    trained = trained[name]
  change(path, key, value)
  says = f"{file}.safetensors: trained with {key}={trained!r}, but config.json .* says {value!r}; "
  with pytest.raises(UserError, match=says):
    work(path)
  assert (path / "evaluation.json").read_bytes() == figures


def test_what_no_artifact_depends_on_may_change(path):
  for key, value in {
    "evaluation.resamples": 10,
    "evaluation.cutoffs": [5, 10],
    "evaluation.targets": 16,
    "run.log_every": 3,
    "mesh.fsdp": -1,
  }.items():
    change(path, key, value)
  recommend(path)
  evaluate(path)


def test_artifacts_of_earlier_versions_are_read(path):
  """The recommender's had the configuration as JSON, without keys that were added later; others
  had none."""
  file = path / "recommender.safetensors"
  tensors, header = read_artifact(file, "recommender")
  config = json.loads((path / "config.json").read_text())
  del config["recommender"]["as_new"]
  write_artifact(file, tensors, {**header, "config": json.dumps(config)})
  recommend(path)
  change(path, "recommender.as_new", 0.1)
  with pytest.raises(UserError, match=r"trained with recommender.as_new=0.0, but .* says 0.1"):
    recommend(path)
  write_artifact(file, tensors, {n: x for n, x in header.items() if n != "config"})
  recommend(path)
  for text in ("{", "[1]", "null"):
    write_artifact(file, tensors, {**header, "config": text})
    with pytest.raises(UserError, match="recommender.safetensors: .* config.*; run mmesid_jax"):
      recommend(path)
