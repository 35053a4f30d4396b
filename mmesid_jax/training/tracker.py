"""Shows the metrics of a training: TensorBoard, Weights & Biases (W&B), MLflow.

Their packages are imported only when they are asked for. W&B and MLflow are set up by their own
environment variables, such as WANDB_MODE=offline and MLFLOW_TRACKING_URI.
"""

import contextlib
import json
import os
import pathlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import write_text
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.hf.pretrained import import_extra

PROJECT = "mmesid_jax"  # of W&B, and experiment of MLflow, unless their variables name another
RUNS = "trackers.json"  # in the stage's folder: the id of the run in each tracker
MLFLOW_PARAMS = 100  # at most in one call
FINISH_SECONDS = 60  # that W&B may upload at the end of a stage; the rest stays for `wandb sync`


class Training(NamedTuple):
  """The training of one stage: its folder in the workdir, the step that it goes on from, and the
  flat configuration."""

  folder: pathlib.Path
  step: int
  settings: Mapping[str, Any]

  @property
  def stage(self) -> str:
    return self.folder.name

  @property
  def group(self) -> str:
    """The last two names in the path of the workdir: those of a refit all end in `refit`."""
    return "/".join(self.folder.resolve().parts[-3:-1])


class Tracker(Protocol):
  """Shows one training. Whatever its methods raise is turned into a warning by `Trackers`.

  `run_id` names its run, for the process that continues a training that was stopped; None = it
  needs none. That process repeats the steps since the checkpoint, with the same values.
  """

  run_id: str | None

  def __init__(self, training: Training, run_id: str | None):
    """Begins a run, or goes on with the run `run_id`."""

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the metrics of a step; one step may come with several sets of them."""

  def close(self, *, finished: bool) -> None:
    """Ends the run. finished: whether the training came to its end."""


class TensorBoard(Tracker):
  """Writes event files to the folder `tensorboard`."""

  run_id = None

  def __init__(self, training: Training, run_id: str | None):
    # not a SummaryWriter: its thread dies where the disk is full, and the next lines wait for it
    folder = training.folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    # the rest of its name can be guessed, and it would be written through a link of that name
    self._board = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
    self._event(training.step, session_log=SessionLog(status=SessionLog.START))

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
      self._event(step, summary=scalar(name, value))
    self._board.flush()

  def close(self, *, finished: bool) -> None:
    self._board.close()

  def _event(self, step: int, **content: Any) -> None:
    self._board.write_event(Event(step=step, wall_time=time.time(), **content))


class WandB(Tracker):
  """A run of Weights & Biases; the x axis of its plots is the step of the training.

  Rows that the server has are not sent again. What W&B keeps offline cannot be asked for, so
  repeated steps are there twice.
  """

  def __init__(self, training: Training, run_id: str | None):
    wandb = _import("wandb")
    self.run_id = run_id or secrets.token_hex(8)
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", PROJECT),
      group=training.group,
      job_type=training.stage,
      name=f"{training.group}/{training.stage}",
      id=self.run_id,
      resume="allow",
      reinit="create_new",
      config=dict(training.settings),
      settings=wandb.Settings(console="off", finish_timeout=FINISH_SECONDS),
    )
    # not W&B's own step: it may not come twice, and its last one is lost when the run is killed
    self._run.define_metric("*", step_metric="step")
    self._last = self._run.summary.get("step", -1)

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    if step >= self._last:  # this step may lack some metrics
      self._run.log({"step": step, **metrics})

  def close(self, *, finished: bool) -> None:
    self._run.finish(exit_code=0 if finished else 1)


class MLflow(Tracker):
  """A run of MLflow, which allows no @ in names: nDCG@10 is nDCG_at_10 there."""

  def __init__(self, training: Training, run_id: str | None):
    mlflow = _import("mlflow")
    self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
    self._continues, self._last = run_id is not None, {}
    if run_id is not None:
      self._client.update_run(run_id, status="RUNNING")
      self.run_id = run_id
      return
    experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    self.run_id = self._client.create_run(
      experiment.experiment_id,
      run_name=f"{training.group}/{training.stage}",
      tags={"stage": training.stage},
    ).info.run_id
    params = [self._entities.Param(key, str(value)) for key, value in training.settings.items()]
    for start in range(0, len(params), MLFLOW_PARAMS):
      self._client.log_batch(self.run_id, params=params[start : start + MLFLOW_PARAMS])

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    now = int(1000 * time.time())
    named = {name.replace("@", "_at_"): float(value) for name, value in metrics.items()}
    new = {name: value for name, value in named.items() if step > self._last_step(name)}
    values = [self._entities.Metric(name, value, now, step) for name, value in new.items()]
    self._client.log_batch(self.run_id, metrics=values)

  def close(self, *, finished: bool) -> None:
    self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")

  def _last_step(self, name: str) -> int:
    """The last step of a metric that the run had before this process; -1 for none."""
    if name not in self._last:
      past = self._client.get_metric_history(self.run_id, name) if self._continues else ()
      self._last[name] = max((metric.step for metric in past), default=-1)
    return self._last[name]


TRACKERS: Mapping[str, type[Tracker]] = {
  "tensorboard": TensorBoard,
  "wandb": WandB,
  "mlflow": MLflow,
}


def check_trackers(names: Sequence[str]) -> None:
  """Raises UserError for a tracker whose package is not installed."""
  for name in names:
    if name != "tensorboard":  # a requirement
      _import(name)


def _import(name: str) -> ModuleType:
  os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody asked for reports of use
  return import_extra(name, extra="tracking", use=f"--config.run.trackers={name}")


class Trackers:
  """The trackers of one training. The first failure of one is a warning, and the training goes on
  without it."""

  def __init__(self, names: Sequence[str], training: Training):
    """Begins or continues a run in each of the `names`, out of TRACKERS."""
    self._open: dict[str, Tracker] = {}
    file = training.folder / RUNS
    runs = _read_runs(file)
    for name in dict.fromkeys(names):
      with self._dropped_on_failure(name):
        tracker = TRACKERS[name](training, runs.get(name))
        if tracker.run_id != runs.get(name):
          runs[name] = tracker.run_id
          write_text(file, json.dumps(runs, indent=1) + "\n")
        self._open[name] = tracker

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    for name, tracker in list(self._open.items()):
      with self._dropped_on_failure(name):
        tracker.log(step, metrics)

  def close(self, *, finished: bool) -> None:
    for name, tracker in list(self._open.items()):
      with self._dropped_on_failure(name):
        tracker.close(finished=finished)

  @contextlib.contextmanager
  def _dropped_on_failure(self, name: str) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # each package has its own kinds
      self._open.pop(name, None)
      reason = " ".join(str(error).split())[:300] or type(error).__name__
      reporter.warn(
        f"{name}: {reason}; the training goes on without it, and metrics.jsonl has all numbers"
      )


def _read_runs(file: pathlib.Path) -> dict[str, Any]:
  """Content of RUNS; {} where there is none or it is damaged, and new runs begin."""
  try:
    return read_json_object(file) if file.exists() else {}
  except UserError:
    return {}
