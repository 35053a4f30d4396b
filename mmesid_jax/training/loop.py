"""The training loop of all stages: what is sent to the device, logging that never waits,
checkpoints, resuming."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from mmesid_jax.errors import Diverged, Interrupted
from mmesid_jax.parallel import processes, sharding
from mmesid_jax.parallel.placement import agree, place
from mmesid_jax.training.checkpoint import Checkpoints
from mmesid_jax.training.interrupts import Stopping
from mmesid_jax.training.metrics_log import MetricsLog, progress
from mmesid_jax.training.saving import SaveTimes
from mmesid_jax.training.step import Loss, initial_state, make_step, several
from mmesid_jax.training.throughput import Amounts, Throughput, describe
from mmesid_jax.training.trace import Trace


@dataclasses.dataclass(frozen=True)
class Task:
  """What a stage hands to the loop.

  loss: as step.Loss; a step learns from `microbatches` of the `batches`. validate(model) ->
  metrics, of which `select` is maximised. `amounts` counts what a batch gives to do, its targets or
  items named by `unit`; `blame` names what stands in a batch when its loss is not finite.
  """

  name: str
  model: nnx.Module
  loss: Loss
  batches: grain.IterDataset
  steps: int
  validate_every: int
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  validate: Callable[[nnx.Module], Mapping[str, float]]
  select: str
  unit: str
  amounts: Callable[[Any], Amounts]
  blame: Callable[[Any], str]
  seed: int
  microbatches: int = 1


@dataclasses.dataclass(frozen=True)
class Result:
  """The trained model with its best parameters in place, what it scored, and how often a step
  compiled."""

  model: nnx.Module
  best: float
  best_step: int
  compilations: int


class _Metrics:
  """Device scalars of recent steps, fetched only when they are at least `behind` steps old."""

  def __init__(self, task: Task, log: MetricsLog, bar, checkpoints: Checkpoints, behind: int):
    self._task, self._log, self._bar, self._checkpoints = task, log, bar, checkpoints
    self._behind = behind
    self._pending: collections.deque = collections.deque()
    self._compiled = False
    self.throughput = Throughput(task.unit)

  def add(self, step: int, metrics: dict[str, jax.Array], steps: list[list[Any]]) -> None:
    """The batches of the steps that end with number `step`, and the metrics of all in one: scalars
    of a single step, or arrays whose first places are theirs."""
    self._pending.append((step, metrics, steps))
    if self._compiled:
      amounts = [self._task.amounts(batch) for batches in steps for batch in batches]
      self.throughput.started(metrics["loss"], Amounts.sum(amounts))
    else:  # the first step compiles: it is no measure of the rate
      jax.block_until_ready(metrics)
      self._compiled = True
      self.throughput.restart()
    if step // self._behind > (step - len(steps)) // self._behind:
      self.fetch(until=step - self._behind)

  def fetch(self, until: int) -> None:
    """Writes the mean over the steps up to `until`. Raises Diverged for the first that is not
    finite."""
    ready = []
    while self._pending and self._pending[0][0] <= until:
      ready.append(self._pending.popleft())
    if not ready:
      return
    found = jax.device_get([metrics for _, metrics, _ in ready])
    values: dict[str, list[float]] = {name: [] for name in found[0]}
    for (last, _, steps), metrics in zip(ready, found, strict=True):
      for name, value in metrics.items():
        values[name] += np.atleast_1d(value)[: len(steps)].tolist()
      losses = zip(values["loss"][-len(steps) :], steps, strict=True)
      for step, (loss, batches) in enumerate(losses, last - len(steps) + 1):
        if not math.isfinite(loss):
          self._diverged(step, loss, batches)
    step = ready[-1][0]
    mean = {name: sum(of_steps) / len(of_steps) for name, of_steps in values.items()}
    mean["learning_rate"] = float(self._task.schedule(step - 1))
    rates = self.throughput.read()
    self._log.write(step, mean | rates)
    if rates:  # else what the bar shows is the newest that is known
      self._bar.set_postfix_str(f"loss {mean['loss']:.4f}, {describe(rates)}", refresh=False)

  def _diverged(self, step: int, loss: float, batches: list[Any]) -> None:
    self._checkpoints.wait()
    blamed = "; ".join(map(self._task.blame, batches))
    raise Diverged(
      f"{self._task.name}: loss is {loss} at step {step}, {blamed}; "
      f"{self._checkpoints.last_good()}; a smaller learning_rate or clip may help"
    )


class _Sender:
  """Takes batches and sends steps to the device, at most `at_once` in one call."""

  def __init__(self, task: Task, graph: nnx.GraphDef, frozen: nnx.State, state, at_once: int):
    self._frozen, self._microbatches, self._at_once = frozen, task.microbatches, at_once
    step = make_step(
      task.loss,
      task.optimizer,
      graph,
      task.seed,
      microbatches=task.microbatches,
      where=sharding.of(state) if sharding.partitioned() else None,
    )
    self._compiled = step if at_once == 1 else several(step, at_once)

  def take(self, iterator: grain.DatasetIterator, ahead: int) -> list[list[Any]]:
    """The batches of the next steps, of `ahead` at most."""
    count = min(ahead, self._at_once)
    return [[next(iterator) for _ in range(self._microbatches)] for _ in range(count)]

  def send(self, state, steps: list[list[Any]]):
    """The state behind the steps, and their metrics."""
    batches = [_stacked(batches) if len(batches) > 1 else batches[0] for batches in steps]
    if self._at_once == 1:
      return self._compiled(state, self._frozen, sharding.put_batch(batches[0]))
    unused = [batches[-1]] * (self._at_once - len(batches))
    stacked = sharding.put_batch(_stacked(batches + unused))
    return self._compiled(state, self._frozen, stacked, len(batches))

  @property
  def compilations(self) -> int:
    return self._compiled._cache_size()


def _stacked(batches: list[Any]) -> Any:
  return jax.tree.map(lambda *x: np.stack(x), *batches)


def fit(
  task: Task,
  folder: pathlib.Path,
  *,
  log_every: int,
  save_every: int,
  save_minutes: float = 0.0,
  keep: int = 2,
  profile_steps: int = 0,
  steps_at_once: int = 1,
) -> Result:
  """Trains to task.steps, from the newest checkpoint in `folder` where there is one.

  Validates every task.validate_every steps and at the end; the best parameters are kept and
  returned. Saves as saving.SaveTimes says and at the end; the newest `keep` checkpoints stay.
  steps_at_once: so many go to the device in one call, fewer where it is time to validate or to
  save; for steps shorter than what a call takes. profile_steps > 0 writes a trace of so many steps
  to folder/trace. With several processes all must call, and all go through the same steps. Raises
  Interrupted after SIGINT or SIGTERM, when everything is saved; Diverged when the loss is not
  finite; UserError where the disk refuses what is written.
  """
  agree(task.model)
  place(task.model)
  graph, params, frozen = nnx.split(task.model, nnx.Param, ...)
  state = initial_state(params, task.optimizer)
  best = {"score": np.asarray(-np.inf), "step": np.asarray(0)}
  sender = _Sender(task, graph, frozen, state, steps_at_once)
  iterator = iter(
    grain.experimental.ThreadPrefetchIterDataset(
      task.batches, prefetch_buffer_size=4 * task.microbatches * steps_at_once
    )
  )
  checkpoints = Checkpoints(folder, keep=keep)
  if checkpoints.latest is not None:
    saved = checkpoints.restore({"train": state, "best": best}, iterator)
    state, best = saved["train"], saved["best"]
  step = int(state["step"])
  log = MetricsLog(folder, step)
  trace = Trace(folder / "trace", profile_steps if processes.first() else 0, task.steps - step)
  save_times = SaveTimes(save_every, save_minutes)

  with checkpoints, Stopping() as stopping, progress(task.name, step, task.steps) as bar:
    metrics = _Metrics(task, log, bar, checkpoints, log_every)
    try:
      while step < task.steps:
        until_validation = task.validate_every - step % task.validate_every
        ahead = min(task.steps - step, until_validation, save_times.steps_left(step))
        steps = sender.take(iterator, ahead)
        trace.before(len(steps))
        state, scalars = sender.send(state, steps)
        step += len(steps)
        bar.update(len(steps))
        metrics.add(step, scalars, steps)
        if written := trace.after(len(steps), scalars["loss"]):
          bar.write(written)
          metrics.throughput.restart()
        if step % task.validate_every == 0 or step == task.steps:
          metrics.fetch(until=step)  # never judge or keep parameters that came out of a NaN
          score = task.validate(nnx.merge(graph, state["params"], frozen))
          log.write(step, {f"valid/{name}": value for name, value in score.items()})
          bar.write(f"{task.name} step {step}: valid {task.select} {score[task.select]:.4f}")
          if score[task.select] > best["score"]:
            best = {"score": np.asarray(score[task.select]), "step": np.asarray(step)}
            checkpoints.save_best(step, state["params"])
          metrics.throughput.restart()
        stop = stopping.asked()
        if stop or save_times.due(step) or step == task.steps:
          metrics.fetch(until=step)
          checkpoints.save(step, {"train": state, "best": best}, iterator)
          save_times.saved()
          metrics.throughput.restart()
        if stop:
          checkpoints.wait()
          raise Interrupted(
            f"{stop} at step {step} of {task.steps}: saved in "
            f"{checkpoints.folder}; run the same command again to go on"
          )
      checkpoints.wait()
      params = checkpoints.restore_best(state["params"])
      if rates := metrics.throughput.overall():
        bar.write(f"{task.name}: {describe(rates)}")
    finally:
      trace.close()
      log.close()
  return Result(
    nnx.merge(graph, params, frozen),
    float(best["score"]),
    int(best["step"]),
    sender.compilations,
  )
