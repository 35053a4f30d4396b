"""Modalities may have any name: in the configuration, on the command line, in training."""

import pytest
from ml_collections import ConfigDict

from mmesid_jax import pipeline
from mmesid_jax.config import default_config
from mmesid_jax.config.checks import check_values
from mmesid_jax.config.schema import add_modalities, modalities
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.stages.recommender_stage import init_model
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


def test_only_features_take_new_names():
  config = default_config().lock()
  add_modalities(config, ["features.audio", "features.a.b", "features.update", "audio", "run.new"])
  assert [*config.features] == ["audio", "collaborative", "text", "visual"]
  assert config.features.audio == "" and config.features.is_locked and "new" not in config.run
  config.features.audio = "audio.npy"
  assert modalities(config) == ("audio", "collaborative")


def test_in_ablations_the_base_takes_them():
  config = ConfigDict({"base": default_config(), "variants": {}}).lock()
  add_modalities(config, ["base.features.audio", "features.depth"])
  assert "audio" in config.base.features and "features" not in config


@pytest.mark.parametrize("name", ["Audio", "au dio", "1st", "a-b"])
def test_a_name_that_cannot_be_a_key_is_refused(name):
  config = default_config()
  config.data.dir, config.features[name] = "somewhere", "audio.npy"
  with pytest.raises(UserError, match=f"--config.features.{name}: a name has lower-case"):
    check_values(config)
