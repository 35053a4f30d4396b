"""Where a run may work: every command that trains says so before it makes anything."""

import pathlib

import pytest
from ml_collections import ConfigDict

from mmesid_jax import pipeline
from mmesid_jax.errors import UserError
from mmesid_jax.experiments.ablations import AblationPlan
from mmesid_jax.experiments.cold_start_run import run_cold_start
from mmesid_jax.stages.workdir import check_workdir
from mmesid_jax.training.checkpoint import Checkpoints


@pytest.mark.parametrize("name", ["a[1]", "a*b", "a?b", "a[", "a\\b", "x[1]/run"])
def test_a_path_that_orbax_takes_for_another_is_refused_before_anything_is_made(
  tmp_path, tiny, name
):
  with pytest.raises(UserError, match="^--workdir=.*: no checkpoint can be kept in a path with "):
    pipeline.run_pipeline(tiny(), tmp_path / name)
  with pytest.raises(UserError, match="^--workdir=.*: no checkpoint can be kept"):
    run_cold_start(tiny(), tmp_path / name, fraction=0.1, split_seed=0, overwrite=False)
  assert not any(tmp_path.iterdir())


def test_the_folders_of_ablations_are_looked_at_before_the_first_run(tmp_path, tiny):
  config = ConfigDict(
    {"base": tiny().to_dict(), "seeds": (0,), "variants": {"base": {}}, "sums": {}}
  )
  plan = AblationPlan(config, tmp_path / "a[1]", tmp_path)
  with pytest.raises(UserError, match=r"^--workdir=.*a\[1\]/base-seed0: no checkpoint"):
    plan.check(["base"], [], [0])


def test_the_whole_path_counts_and_a_mounted_store_is_none(tmp_path, monkeypatch):
  (tmp_path / "a[1]").mkdir()
  monkeypatch.chdir(tmp_path / "a[1]")
  with pytest.raises(UserError, match=r"^--workdir=run, in full .*a\[1\]/run: no checkpoint .* \["):
    check_workdir(pathlib.Path("run"))
  (tmp_path / "link").symlink_to("a[1]")
  check_workdir(tmp_path / "link" / "run")
  with pytest.raises(UserError, match=r"^--workdir=/gs/x: no checkpoint .* /gs/; choose another"):
    check_workdir(pathlib.Path("/gs/x"))


@pytest.mark.parametrize("name", ["a]b", "a{b}", "50%, #2 & 'c': $d", "~", "ü"])
def test_checkpoints_are_kept_in_folders_of_other_names(tmp_path, name):
  check_workdir(tmp_path / name)
  with Checkpoints(tmp_path / name) as checkpoints:
    checkpoints.save_best(1, {"x": 1.0})
    checkpoints.wait()
    assert checkpoints.restore_best(1, {"x": 0.0})["x"] == 1
