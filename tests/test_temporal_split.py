"""Training and evaluation on a data set that is cut by time, from the folder to the table."""

import json
import shutil

import numpy as np
import pytest
from commands import refused

from mmesid_jax import pipeline
from mmesid_jax.data.synthetic import write_synthetic
from mmesid_jax.errors import UserError
from mmesid_jax.experiments import cold_start_run
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.stages.workdir import reopen_workdir

DAY = 86_400


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """40 items, 60 users who come one after the other, an interaction a day: the late ones do not
  train, and not all items do."""
  path = tmp_path_factory.mktemp("temporal") / "data"
  write_synthetic(path, users=60, items=40, clusters=4, seed=0)
  lengths = [len(s) for s in sequences(path)]
  times = [DAY * (u + day) for u, length in enumerate(lengths) for day in range(length)]
  np.save(path / "times.npy", np.array(times, np.int64))
  return path


def sequences(path):
  return [[*map(int, s.split()[1:])] for s in (path / "sequences.txt").read_text().splitlines()]


def config_of(tiny, source, **changes):
  changes = {f"data.{name}": value for name, value in changes.items()}
  return tiny(
    changes={
      "data.source": "files",
      "data.dir": str(source),
      "data.split": "temporal",
      "data.split_at": (0.2, 0.4),
      **changes,
    }
  )


@pytest.fixture(scope="module")
def run(tiny, source, tmp_path_factory):
  """The workdir of a run, read only, and what is expected of it: (training parts, users who are
  validated, users who are tested)."""
  path = tmp_path_factory.mktemp("temporal") / "run"
  pipeline.run_pipeline(config_of(tiny, source), path)
  times, users, at = np.load(source / "times.npy"), [], 0
  for items in sequences(source):
    users.append(list(zip(items, times[at : at + len(items)].tolist(), strict=True)))
    at += len(items)
  first, second = (sorted(times.tolist())[int(share * len(times))] for share in (0.2, 0.4))
  train = [[item for item, time in user if time < first] for user in users]
  valid = [u for u, user in enumerate(users) if train[u] and len(train[u]) < len(user)]
  valid = [u for u in valid if users[u][len(train[u])][1] < second]
  test = [u for u, user in enumerate(users) if user[0][1] < second <= user[-1][1]]
  return path, (train, valid, test)


def test_every_stage_learns_of_what_is_before_and_ranks_what_is_behind(run, capsys):
  path, (train, valid, test) = run
  assert 0 < sum(map(bool, train)) < 60 and 0 < len(valid) < 60 and 0 < len(test) < 60
  counts = np.bincount(sum(train, []), minlength=41)
  assert (counts[1:] == 0).any()  # items that nothing trains on are candidates all the same
  tensors, _ = read_artifact(path / "recommender.safetensors", "recommender")
  np.testing.assert_array_equal(tensors["counts"], counts)
  for split, expected in (("test", test), ("valid", valid)):
    pipeline.report_ranks(reopen_workdir(path), split)
    out = capsys.readouterr().out
    assert f"{split} (temporal): {len(expected):,} users (" in out and "MME-SID" in out
    name = "evaluation.json" if split == "test" else "evaluation_valid.json"
    found = json.loads((path / name).read_text())
    assert found["users"] == len(expected) and found["left_out"] > 0
    assert found["config"]["data.split"] == "temporal"
    for protocols in found["models"].values():
      assert all(0 <= v["mean"] <= 1 for metrics in protocols.values() for v in metrics.values())


def test_the_first_run_tells_where_it_cuts(tiny, source, run, tmp_path, capsys):
  path, (train, valid, test) = run
  copy = shutil.copytree(path, tmp_path / "copy")
  capsys.readouterr()
  pipeline.run_pipeline(config_of(tiny, source), copy)
  out = capsys.readouterr().out
  assert out.count("up to date") == 3
  assert f"{sum(map(bool, train))} users train, {len(valid)} validate (" in out
  assert f" {len(test)} test (" in out and "temporal split at 1970-01-" in out


def test_another_split_is_another_experiment(tiny, source, run, tmp_path):
  copy = shutil.copytree(run[0], tmp_path / "copy")
  with pytest.raises(UserError, match="data.split was 'temporal', now 'leave_one_out'"):
    pipeline.run_pipeline(config_of(tiny, source, split="leave_one_out"), copy)
  with pytest.raises(UserError, match=r"data.split_at was \[0.2, 0.4\], now \[0.2, 0.5\]"):
    pipeline.run_pipeline(config_of(tiny, source, split_at=(0.2, 0.5)), copy)
  data = shutil.copytree(source, tmp_path / "data")
  np.save(data / "times.npy", np.load(source / "times.npy") + DAY)
  with pytest.raises(UserError, match="collaborative was made from other data"):
    pipeline.run_pipeline(config_of(tiny, data), copy)


@pytest.mark.slow
def test_items_are_held_out_of_a_temporal_split(tiny, source, tmp_path, capsys):
  path = tmp_path / "cold"
  options = {"fraction": 0.1, "split_seed": 3, "overwrite": False}
  cold_start_run.run_cold_start(config_of(tiny, source), path, **options)
  assert "test (temporal): " in capsys.readouterr().out
  kept = sum(len(s) for s in sequences(path / "warm"))
  assert len(np.load(path / "warm" / "times.npy")) == kept < len(np.load(source / "times.npy"))


def test_the_command_refuses_what_has_no_times_in_one_line(source, tmp_path):
  command = ("train", "--config=configs/beauty.py", f"--workdir={tmp_path}")
  temporal = "--config.data.split=temporal"
  (tmp_path / "data").mkdir()
  shutil.copy(source / "sequences.txt", tmp_path / "data")
  line = refused(*command, f"--config.data.dir={tmp_path / 'data'}", temporal)
  assert "times.npy: no such file; a temporal split needs the time of every interaction" in line
  data = f"--config.data.dir={source}"
  line = refused(*command, data, temporal, "--config.data.split_at=0.9,0.8")
  assert "--config.data.split_at=[0.9, 0.8]: expected two shares" in line
