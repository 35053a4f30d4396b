"""Trackers show what metrics.jsonl holds, each step once, and never end a training."""

import json
import re
import sys
import types

import pytest
from ml_collections import ConfigDict

from mmesid_jax import pipeline
from mmesid_jax.config.schema import TRACKERS as NAMES
from mmesid_jax.errors import UserError
from mmesid_jax.parallel import processes
from mmesid_jax.stages.workdir import OF_TRAINING
from mmesid_jax.training.metrics_log import MetricsLog
from mmesid_jax.training.tracker import TRACKERS, check_trackers

SETTINGS = {f"key{n}": n for n in range(150)} | {"data.dir": ""}


class Wandb(types.ModuleType):
  """Keeps all rows of every run, as its server does. Where it is offline, it cannot tell them."""

  def __init__(self):
    super().__init__("wandb")
    self.runs, self.started, self.fails, self.offline = {}, [], False, False

  def init(self, **options):
    self.started.append(options)
    rows = self.runs.setdefault(options["id"], [])

    def log(row):
      if self.fails:
        raise ConnectionError("no\nnetwork")
      rows.append(row)

    summary = {key: row[key] for row in rows for key in row if not self.offline}
    return types.SimpleNamespace(
      log=log,
      summary=summary,
      define_metric=lambda name, step_metric: None,
      finish=lambda exit_code: rows.append(exit_code),
    )

  Settings = types.SimpleNamespace


class Mlflow(types.ModuleType):
  """As strict as MLflow on names, on the size of a call, and on runs that do not exist."""

  def __init__(self):
    super().__init__("mlflow")
    self.runs, self.client = {}, self
    self.entities = types.SimpleNamespace(
      Param=lambda key, value: (key, value),
      Metric=lambda key, value, timestamp, step: (step, key, value),
    )

  def MlflowClient(self):
    return self

  def set_experiment(self, name):
    return types.SimpleNamespace(experiment_id=name)

  def create_run(self, experiment, *, run_name, tags):
    run_id = f"run{len(self.runs)}"
    self.runs[run_id] = {"name": run_name, "tags": tags, "params": {}, "rows": [], "status": []}
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

  def log_batch(self, run_id, metrics=(), params=()):
    assert len(params) <= 100 and all(re.fullmatch(r"[\w\-. /:]+", m[1]) for m in metrics)
    self.runs[run_id]["params"] |= dict(params)
    self.runs[run_id]["rows"] += metrics

  def get_metric_history(self, run_id, name):
    return [types.SimpleNamespace(step=x[0]) for x in self.runs[run_id]["rows"] if x[1] == name]

  def update_run(self, run_id, status):
    self.runs[run_id]["status"].append(status)

  set_terminated = update_run


@pytest.fixture
def wandb(monkeypatch):
  monkeypatch.delenv("WANDB_PROJECT", raising=False)
  monkeypatch.setitem(sys.modules, "wandb", Wandb())
  return sys.modules["wandb"]


@pytest.fixture
def mlflow(monkeypatch):
  monkeypatch.setitem(sys.modules, "mlflow", Mlflow())
  return sys.modules["mlflow"]


def train(folder, start, end, trackers, *, finished=False, validates=True):
  """Logs the steps after `start` up to `end`, with a validation after each step or none."""
  log = MetricsLog(folder, start, trackers, SETTINGS)
  for step in range(start + 1, end + 1):
    log.write(step, {"loss": step / 2})
    if validates or step < end:
      log.write(step, {"valid/nDCG@10": step / 4})
  if finished:
    log.close()
  else:
    log._file.close()  # killed


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_names_of_the_configuration_are_those_that_exist():
  assert tuple(TRACKERS) == NAMES


def test_a_run_that_is_killed_twice_goes_on_in_the_same_runs_and_nothing_is_lost(
  tmp_path, wandb, mlflow
):
  """It is killed in a validation, and again before it comes as far as that. Then the trackers lack
  the last lines of metrics.jsonl."""
  folder = tmp_path / "runs" / "beauty" / "collaborative"
  train(folder, 0, 9, NAMES, validates=False)
  for rows in (*wandb.runs.values(), mlflow.runs["run0"]["rows"]):
    del rows[-2:]
  train(folder, 4, 6, NAMES)
  train(folder, 2, 12, NAMES, finished=True)

  expected = [row for s in range(1, 13) for row in ((s, "loss", s / 2), (s, "valid", s / 4))]
  written = [(x["step"], k.split("/")[0], x[k]) for x in lines(folder) for k in x if k != "step"]
  assert written == expected
  ((run_id, (*rows, exit_code)),) = wandb.runs.items()
  assert exit_code == 0 and [x["id"] for x in wandb.started] == [run_id] * 3
  shown = [{"step": x[0], x[1].replace("valid", "valid/nDCG@10"): x[2]} for x in expected]
  assert [row for n, row in enumerate(rows) if row not in rows[:n]] == shown
  assert len(rows) <= len(shown) + 2  # a step that may have come in part is sent again
  assert wandb.started[0]["config"] == SETTINGS
  assert wandb.started[0]["job_type"] == "collaborative"
  assert wandb.started[0]["name"] == "runs/beauty/collaborative"
  assert wandb.started[0]["project"] == "mmesid_jax"

  (run,) = mlflow.runs.values()
  shown = [(x[0], x[1].replace("valid", "valid/nDCG_at_10"), x[2]) for x in expected]
  assert run["rows"] == shown
  assert run["params"] == {key: str(value) for key, value in SETTINGS.items()}
  assert run["tags"] == {"stage": "collaborative"}
  assert run["status"] == ["RUNNING", "RUNNING", "FINISHED"]


def test_offline_repeated_steps_are_kept_twice_and_none_is_lost(tmp_path, wandb):
  wandb.offline = True
  train(tmp_path, 0, 5, ("wandb",))
  train(tmp_path, 3, 6, ("wandb",))
  ((*rows,),) = wandb.runs.values()
  assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 4, 5, 6]


def test_a_training_that_stops_early_is_not_shown_as_finished(tmp_path, wandb, mlflow):
  MetricsLog(tmp_path, 0, NAMES).close(finished=False)
  assert [*wandb.runs.values()] == [[1]]
  assert mlflow.runs["run0"]["status"] == ["KILLED"]


def test_each_folder_has_runs_of_its_own(tmp_path, wandb, mlflow):
  for stage in ("collaborative", "recommender"):
    train(tmp_path / stage, 0, 2, NAMES, finished=True)
  assert len(wandb.runs) == len(mlflow.runs) == 2


def test_a_tracker_that_is_asked_for_later_shows_all_from_there(tmp_path, wandb):
  train(tmp_path, 0, 5, ("tensorboard",))
  train(tmp_path, 3, 5, ("wandb",))
  ((*rows,),) = wandb.runs.values()
  assert [row["step"] for row in rows] == [4, 4, 5, 5]


def test_a_failure_is_one_warning_and_the_others_go_on(tmp_path, wandb, mlflow, capsys):
  log = MetricsLog(tmp_path, 0, NAMES)
  wandb.fails = True
  for step in (1, 2):
    log.write(step, {"loss": 0.5})
  log.close()
  (warning,) = capsys.readouterr().err.splitlines()
  assert warning.startswith("warning: wandb: no network; the training goes on without it")
  assert [line["step"] for line in lines(tmp_path)] == [1, 2]
  assert mlflow.runs["run0"]["rows"] == [(1, "loss", 0.5), (2, "loss", 0.5)]


@pytest.mark.parametrize("saved", ["{", "[]", '{"mlflow": []}', '{"mlflow": "run7"}'])
def test_runs_that_cannot_be_continued_do_not_end_a_training(tmp_path, mlflow, capsys, saved):
  (tmp_path / "trackers.json").write_text(saved)
  train(tmp_path, 0, 2, ("mlflow",), finished=True)
  assert len(lines(tmp_path)) == 4
  assert len(mlflow.runs) + capsys.readouterr().err.count("warning: mlflow: ") == 1


def test_the_main_process_alone_has_trackers(tmp_path, wandb, monkeypatch):
  monkeypatch.setattr(processes, "is_main", lambda: False)
  train_log = MetricsLog(tmp_path, 0, NAMES)
  train_log.write(1, {"loss": 0.5})
  train_log.close()
  assert not wandb.started and not [*tmp_path.iterdir()]


def test_a_missing_package_is_refused_before_any_training(tiny, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "mlflow", None)
  config = ConfigDict(tiny(changes={"run.trackers": ("tensorboard", "mlflow")}))
  with pytest.raises(UserError) as caught:
    pipeline.run_pipeline(config, tmp_path / "run")
  assert str(caught.value) == (
    "mlflow is not installed, and --config.run.trackers=mlflow needs it: "
    'pip install "mmesid_jax[tracking]"'
  )
  assert not (tmp_path / "run").exists()


def test_a_wrong_name_is_refused_before_any_training(tiny, tmp_path):
  config = ConfigDict(tiny(changes={"run.trackers": ("wandb", "comet")}))
  with pytest.raises(UserError, match="run.trackers=.*out of tensorboard, wandb, mlflow$"):
    pipeline.run_pipeline(config, tmp_path / "run")


def test_no_package_is_imported_unless_asked_for(tmp_path, monkeypatch):
  for name in ("wandb", "mlflow"):
    monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
  check_trackers(("tensorboard",))
  train(tmp_path, 0, 2, ("tensorboard",), finished=True)
  assert not (tmp_path / "trackers.json").exists()


def test_what_is_kept_of_runs_is_a_file_of_training(tmp_path, mlflow):
  train(tmp_path, 0, 1, ("mlflow",))
  for name in ("trackers.json", ".trackers.json.0123abcd.tmp"):
    assert OF_TRAINING.fullmatch(name)
  assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "trackers.json"}


@pytest.mark.slow  # each package takes seconds to import
def test_the_real_packages_keep_one_run_with_each_step_once(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  mlflow = pytest.importorskip("mlflow")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_DIR", str(tmp_path))
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
  folder = tmp_path / "collaborative"
  train(folder, 0, 4, NAMES)
  train(folder, 2, 6, NAMES, finished=True)

  runs = json.loads((folder / "trackers.json").read_text())
  kept = [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")]
  assert {*kept} == {runs["wandb"]}
  client = mlflow.MlflowClient()
  run = client.get_run(runs["mlflow"])
  assert run.info.status == "FINISHED" and run.data.params["key149"] == "149"
  history = client.get_metric_history(run.info.run_id, "valid/nDCG_at_10")
  assert sorted((x.step, x.value) for x in history) == [(s, s / 4) for s in range(1, 7)]
