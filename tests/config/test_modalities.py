"""Modalities may have any name: in the configuration, on the command line, in training."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from mmesid_jax import pipeline
from mmesid_jax.config import default_config
from mmesid_jax.config.checks import check_values
from mmesid_jax.config.modality_names import is_modality_name
from mmesid_jax.config.schema import add_modalities, modalities
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.parallel.mesh import mesh_from_config, use_mesh
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages.recommender_stage import init_model
from mmesid_jax.stages.registry import STAGES
from mmesid_jax.stages.workdir import open_workdir


def test_a_model_reads_an_audio_table(tiny, tmp_path):
  """The synthetic catalogue's second table, under a name that no code knows."""
  changes = {"features.collaborative": "", "features.audio": "visual.npy"}
  workdir = open_workdir(tiny(changes={**changes, "recommender.codes": "none"}), tmp_path)
  assert init_model(workdir).items.modalities == ("audio", "text")


@pytest.mark.slow
def test_an_audio_table_trains(tiny, tmp_path):
  """The synthetic catalogue's second table, under a name that no code knows."""
  changes = {"features.collaborative": "", "features.audio": "visual.npy"}
  changes |= {"stages": ("semantic_ids", "recommender"), "semantic_ids.validate_every_epochs": 1}
  config = tiny(changes={**changes, "semantic_ids.epochs": 1, "recommender.epochs": 1})
  pipeline.run_pipeline(config, tmp_path)
  codes, _ = read_artifact(tmp_path / "semantic_ids.safetensors", "semantic_ids")
  assert {name for name in codes if name.startswith("codes.")} == {"codes.audio", "codes.text"}
  assert codes["codes.audio"].shape == (41, 2)
  model, _ = read_artifact(tmp_path / "recommender.safetensors", "recommender")
  assert any("audio" in name for name in model)
  recommender = Recommender.load(tmp_path)
  (first, *_), *_ = recommender.recommend([[1, 2]])
  assert [*first.parts] == ["identity", "audio", "text"]
  assert len(recommender.add_items({"audio": np.eye(2, 48)})) == 2


def test_only_features_take_new_names():
  config = default_config().lock()
  add_modalities(config, ["features.audio", "features.a.b", "features.update", "audio", "run.new"])
  assert [*config.features] == ["audio", "collaborative", "text", "visual"]
  assert config.features.audio == "" and config.features.is_locked and "new" not in config.run
  config.features.audio = "audio.npy"
  assert modalities(config) == ("audio", "collaborative")


def test_no_name_is_an_attribute_of_what_holds_the_parts_of_modalities():
  from flax import nnx

  names = [name for kind in (nnx.Dict, ConfigDict) for name in dir(kind)]
  assert not [name for name in names if is_modality_name(name)]


def test_tables_are_not_asked_for_where_no_stage_reads_them(tiny, tmp_path):
  config = tiny(changes={"features.text": "nowhere.npy"})
  with use_mesh(mesh_from_config(config.mesh)):
    pipeline._open(config, tmp_path / "a", [STAGES["collaborative"]], overwrite=False)
    with pytest.raises(UserError, match="nowhere.npy: no such file"):
      pipeline._open(config, tmp_path / "b", [STAGES["semantic_ids"]], overwrite=False)


def test_in_ablations_the_base_takes_them():
  config = ConfigDict({"base": default_config(), "variants": {}}).lock()
  add_modalities(config, ["base.features.audio", "features.depth"])
  assert "audio" in config.base.features and "features" not in config


@pytest.mark.parametrize("name", ["Audio", "au dio", "1st", "a-b", "identity", "train", "pop"])
def test_a_name_that_cannot_be_a_key_is_refused(name):
  config = default_config()
  config.data.dir, config.features[name] = "somewhere", "audio.npy"
  with pytest.raises(UserError, match=f"--config.features.{name}: expected a name of lower-case"):
    check_values(config)
