"""The loop all stages share: compiles once, resumes bit for bit, stops on NaN and on signals."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmesid_jax.errors import Diverged, Interrupted, UserError
from mmesid_jax.training.checkpoint import Checkpoints
from mmesid_jax.training.interrupts import SaveSchedule
from mmesid_jax.training.loop import Task, fit
from mmesid_jax.training.step_progress import StepProgress
from mmesid_jax.training.throughput import Amounts


class Line(nnx.Module):
  def __init__(self):
    self.weight = nnx.Param(jnp.zeros(3))


def task(steps=12, poison=None, on_validate=None) -> Task:
  """Fits a line to shuffled numbers, with noise from the step's key; `poison` is an item whose loss
  is NaN."""

  def loss(model, batch, key):
    x = batch.astype(jnp.float32) / 10
    noise = jax.random.normal(key, x.shape)
    error = (model.weight[...] * jnp.stack([x, x**2, noise], 1)).sum(1) - jnp.sin(x)
    value = (error**2).mean()
    value = jnp.where((batch == poison).any(), jnp.nan, value) if poison else value
    return (len(batch) * value, len(batch)), {}

  def validate(model):
    if on_validate:
      on_validate()
    return {"score": -float(jnp.abs(model.weight[...] - 0.1).sum())}

  batches = grain.MapDataset.range(1, 65).seed(0).shuffle().repeat().batch(8).to_iter_dataset()
  schedule = optax.constant_schedule(0.01)
  return Task(
    name="line",
    model=Line(),
    loss=loss,
    batches=batches,
    steps=steps,
    steps_per_epoch=8,
    validate_every=4,
    optimizer=optax.adam(schedule),
    schedule=schedule,
    validate=validate,
    select="score",
    unit="items",
    amounts=lambda batch: Amounts(len(batch), flops=24.0),
    blame=lambda batch: f"items {sorted(batch.tolist())}",
    seed=0,
  )


@contextlib.contextmanager
def compiled_programs():
  """Names of the functions that are compiled within the block."""
  # jax has no public way to remove a listener, so this one goes quiet
  names, active = [], [True]

  def listen(event: str, seconds: float, **options) -> None:
    if active and event == "/jax/core/compile/backend_compile_duration":
      names.append(options["fun_name"])

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield names
  active.clear()


def test_a_step_compiles_once_and_metrics_are_written(tmp_path):
  with compiled_programs() as compiled:
    fit(task(), tmp_path, log_every=3, save_every=5)
  assert compiled.count("jit(step)") == 1
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "valid/score" in line] == [4, 8, 12]
  assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
  assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_rates_are_logged_and_a_trace_is_written(tmp_path):
  fit(task(), tmp_path, log_every=2, save_every=100, profile_steps=2)
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  rates = [line for line in lines if "items_per_second" in line]
  assert rates
  for line in rates:  # every step has 8 items and 24 operations
    assert line["tflops_per_second"] * 1e12 == pytest.approx(3 * line["items_per_second"])
    assert "mfu" not in line  # no data sheet gives the peak of a CPU
  assert list((tmp_path / "trace").rglob("*.xplane.pb"))
  assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))


def test_a_trace_longer_than_the_run_is_the_whole_run(tmp_path, capsys):
  fit(task(steps=4), tmp_path, log_every=2, save_every=100, profile_steps=9)
  assert "trace of 4 steps" in capsys.readouterr().out
  assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_the_best_parameters_come_back_not_the_last(tmp_path):
  scores = iter([{"score": s} for s in (1.0, 3.0, 2.0)])
  seen = []

  def validate(model):
    seen.append(np.asarray(model.weight[...]))
    return next(scores)

  changed = task()
  object.__setattr__(changed, "validate", validate)
  result = fit(changed, tmp_path, log_every=2, save_every=100)
  assert (result.best, result.best_step, result.best_epoch) == (3.0, 8, 1)
  assert result.scores == [1.0, 3.0, 2.0]
  assert result.summary("score") == {
    "valid": {"score": 3.0},
    "valid_by_epoch": [1.0, 3.0, 2.0],
    "best_step": 8,
    "best_epoch": 1,
  }
  np.testing.assert_array_equal(result.model.weight[...], seen[1])


def test_without_validation_the_last_parameters_come_back(tmp_path):
  """Also from a run that has ended, where nothing is left but its checkpoint."""
  rising = itertools.count()
  better = dataclasses.replace(task(), validate=lambda model: {"score": float(next(rising))})
  validated = fit(better, tmp_path / "validated", log_every=2, save_every=100)
  assert validated.best_step == 12
  plain = dataclasses.replace(task(), validate=None)
  for _ in range(2):
    result = fit(plain, tmp_path / "plain", log_every=2, save_every=100)
    np.testing.assert_array_equal(result.model.weight[...], validated.model.weight[...])
    assert result.summary("score") == {"best_step": 12, "best_epoch": 2}
  assert not list((tmp_path / "plain" / "best").iterdir())


def test_a_run_that_stopped_in_between_ends_as_one_that_did_not(tmp_path):
  whole = fit(task(), tmp_path / "whole", log_every=3, save_every=5)
  calls = []

  def stop_at_second_validation():
    calls.append(1)
    if len(calls) == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Interrupted, match="SIGTERM at step 8 of 12"):
    fit(task(on_validate=stop_at_second_validation), tmp_path / "cut", log_every=3, save_every=5)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  with compiled_programs() as compiled:
    resumed = fit(task(), tmp_path / "cut", log_every=3, save_every=5)
  assert compiled.count("jit(step)") == 1
  np.testing.assert_array_equal(resumed.model.weight[...], whole.model.weight[...])
  assert (resumed.best, resumed.best_step) == (whole.best, whole.best_step)
  assert resumed.scores == whole.scores and len(whole.scores) == 3
  steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").open()]
  assert steps == sorted(steps)


def test_what_runs_ahead_is_bounded_before_a_stop_is_looked_for(tmp_path, monkeypatch):
  outputs = []

  class Counted:
    def add(self, output):
      outputs.append(output)
      if len(outputs) == 3:
        os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr("mmesid_jax.training.loop.InFlight", Counted)
  with pytest.raises(Interrupted, match="SIGTERM at step 3 of 12"):
    fit(task(), tmp_path, log_every=100, save_every=100)
  assert all(isinstance(output, jax.Array) for output in outputs)


def test_the_progress_bar_starts_at_the_step_that_the_run_goes_on_from(tmp_path, monkeypatch):
  started = []
  monkeypatch.setattr(StepProgress, "start", lambda progress, step: started.append(step))
  fit(task(steps=8), tmp_path, log_every=3, save_every=4)
  fit(task(steps=12), tmp_path, log_every=3, save_every=4)
  assert started == [0, 8]


def test_a_loss_that_is_not_finite_names_step_batch_and_checkpoint(tmp_path):
  with pytest.raises(Diverged) as caught:
    fit(task(poison=17, steps=40), tmp_path, log_every=3, save_every=1)
  message = str(caught.value)
  step = int(message.split("at step ")[1].split(",")[0])
  assert "17" in message.split("items [")[1].split("]")[0].split(", ")
  assert f"last good checkpoint is step {step - 1}" in message
  assert Checkpoints(tmp_path).latest == step - 1  # nothing was saved behind the NaN


def test_several_steps_in_a_call_train_and_log_as_single_ones(tmp_path):
  """Three at once: fewer before a validation every 4 steps and a save every 5."""
  results, logs = [], []
  for at_once in (1, 3):
    folder = tmp_path / str(at_once)
    with compiled_programs() as compiled:
      results.append(fit(task(), folder, log_every=100, save_every=5, steps_at_once=at_once))
    assert compiled.count("jit(step)" if at_once == 1 else "jit(run)") == 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "gradient_norm", "learning_rate", "valid/score")
    logs.append([[line.get(name, 0) for name in names] for line in lines])
  single, several = results
  np.testing.assert_allclose(several.model.weight[...], single.model.weight[...], rtol=1e-5)
  assert several.best_step == single.best_step
  np.testing.assert_allclose(logs[1], logs[0], rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 3])
def test_parameters_of_a_nan_are_never_validated(tmp_path, at_once):
  """Also where no log or save looks at the loss before: the validation itself does."""
  validated = []
  poisoned = task(poison=17, steps=40, on_validate=lambda: validated.append(1))
  with pytest.raises(Diverged) as caught:
    fit(poisoned, tmp_path, log_every=100, save_every=100, steps_at_once=at_once)
  step = int(str(caught.value).split("at step ")[1].split(",")[0])
  assert len(validated) == (step - 1) // 4
  assert "17" in str(caught.value).split("items [")[1].split("]")[0].split(", ")


def test_a_trace_ends_with_the_run_that_fails_and_the_next_one_can_trace(tmp_path):
  def fail():
    raise ValueError("of the validation")

  for folder in (tmp_path / "first", tmp_path / "second"):
    with pytest.raises(ValueError, match="of the validation"):
      fit(task(on_validate=fail), folder, log_every=2, save_every=100, profile_steps=9)
    assert list((folder / "trace").rglob("*.xplane.pb"))


def test_a_trace_changes_no_line_of_the_log(tmp_path):
  """Of several processes one alone traces: it must not look at a loss before the others do."""
  steps = []
  for traced in (0, 3):
    folder = tmp_path / str(traced)
    fit(task(steps=16), folder, log_every=100, save_every=100, profile_steps=traced)
    assert (folder / "trace").exists() == bool(traced)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps.append([json.loads(line)["step"] for line in lines])
  assert steps[0] == steps[1]


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path):
  fit(task(), tmp_path, log_every=3, save_every=5)
  for file in (tmp_path / "steps").rglob("*"):
    if file.is_file() and "state" in file.parts:
      file.write_bytes(b"")
  with pytest.raises(UserError, match="not a readable checkpoint"):
    fit(task(), tmp_path, log_every=3, save_every=5)


def test_saving_by_minutes_counts_from_the_last_save(tmp_path, monkeypatch):
  minutes = itertools.count()  # one goes by whenever somebody looks
  of_ours = functools.partial(SaveSchedule, clock=lambda: 60.0 * next(minutes))
  monkeypatch.setattr("mmesid_jax.training.loop.SaveSchedule", of_ours)
  fit(task(), tmp_path, log_every=3, save_every=100, save_minutes=3.0, keep=9)
  assert sorted(int(file.name) for file in (tmp_path / "steps").iterdir()) == [3, 6, 9, 12]


def test_a_damaged_newest_checkpoint_costs_the_steps_behind_the_one_before(tmp_path, capsys):
  whole = fit(task(), tmp_path, log_every=3, save_every=5)
  shutil.rmtree(tmp_path / "steps" / "12" / "state")
  again = fit(task(), tmp_path, log_every=3, save_every=5)
  assert f"continuing from {tmp_path}/steps/10" in capsys.readouterr().err
  np.testing.assert_array_equal(again.model.weight[...], whole.model.weight[...])
  assert (again.best, again.best_step) == (whole.best, whole.best_step)
  assert Checkpoints(tmp_path).latest == 12


def test_a_run_killed_between_a_state_and_its_best_parameters_ends_with_the_right_ones(tmp_path):
  """steps/8 is there, and best/8 is not, as earlier versions could leave it; best/4 is."""
  whole = fit(task(), tmp_path / "whole", log_every=3, save_every=4)
  cut, aside = tmp_path / "cut", tmp_path / "aside"
  for stop, steps in enumerate((4, 8), 1):
    calls = []

    def stop_at(calls=calls, at=1):
      calls.append(1)
      if len(calls) == at:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"at step {steps} of 12"):
      fit(task(on_validate=stop_at), cut, log_every=3, save_every=4)
    if stop == 1:
      shutil.copytree(cut / "best" / "4", aside)
  shutil.rmtree(cut / "best")
  (cut / "best").mkdir()
  aside.rename(cut / "best" / "4")
  resumed = fit(task(), cut, log_every=3, save_every=4)
  assert (resumed.best, resumed.best_step) == (whole.best, whole.best_step)
  np.testing.assert_array_equal(resumed.model.weight[...], whole.model.weight[...])


CHILD = """
import pathlib, sys, time
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_platforms", "cpu")
from test_loop import task, fit
import numpy as np
slow = lambda: (pathlib.Path({folder!r}, "validated").touch(), time.sleep({sleep}))
result = fit(task(steps=40, on_validate=slow), pathlib.Path({folder!r}), log_every=3, save_every=3)
np.save({folder!r} + "/weight.npy", result.model.weight[...])
"""


def child(folder: pathlib.Path, sleep: float) -> subprocess.Popen:
  code = CHILD.format(tests=str(pathlib.Path(__file__).parent), folder=str(folder), sleep=sleep)
  return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def test_kill_9_then_resume_is_bit_equal(tmp_path):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  assert child(whole, 0).wait() == 0
  process = child(cut, 0.3)  # slow enough to be caught in the middle
  deadline = time.monotonic() + 120
  while not list(cut.glob("steps/[1-9]*")) and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (cut / "weight.npy").exists(), "the run was over before it was killed"
  assert child(cut, 0).wait() == 0
  np.testing.assert_array_equal(np.load(cut / "weight.npy"), np.load(whole / "weight.npy"))
