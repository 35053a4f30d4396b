"""The training loop of all stages: what is sent to the device, logging that never waits,
checkpoints, resuming."""

import collections
import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from mmesid_jax.display import reporter
from mmesid_jax.errors import Diverged, Interrupted
from mmesid_jax.parallel import processes, sharding
from mmesid_jax.parallel.mesh import is_partitioned
from mmesid_jax.parallel.placement import check_model_equal, place_model
from mmesid_jax.training.checkpoint import Checkpoints
from mmesid_jax.training.in_flight import InFlight
from mmesid_jax.training.interrupts import SaveSchedule, StopRequest
from mmesid_jax.training.metrics_log import MetricsLog, read_values
from mmesid_jax.training.step import Loss, initial_state, make_multi_step, make_step
from mmesid_jax.training.step_progress import StepProgress
from mmesid_jax.training.throughput import Amounts, Throughput, describe_rates
from mmesid_jax.training.trace import Trace

Steps = list[list[Any]]  # the batches (inner list: microbatches) of consecutive steps


@dataclasses.dataclass(frozen=True)
class Task:
  """A model, its batches and everything else that a stage hands to the loop.

  loss: as step.Loss; a step learns from `microbatches` of the `batches`. validate(model) ->
  metrics, of which `select` is maximized; None = no validation, as in a refit. `amounts` counts
  what a batch gives to do, its targets or items named by `unit`; `blame` names what is in a batch
  whose loss is not finite.
  """

  name: str
  model: nnx.Module
  loss: Loss
  batches: grain.IterDataset
  steps: int
  steps_per_epoch: int
  validate_every: int
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  validate: Callable[[nnx.Module], Mapping[str, float]] | None
  select: str
  unit: str
  amounts: Callable[[Any], Amounts]
  blame: Callable[[Any], str]
  seed: int
  microbatches: int = 1


@dataclasses.dataclass(frozen=True)
class Result:
  """The trained model with its best parameters, their score, the step and the epoch (from 1) at the
  end of which they were that, and the scores of all validations in order, also of those before a
  stop (in the main process). Without validation the last parameters, None and no scores."""

  model: nnx.Module
  best: float | None
  best_step: int
  best_epoch: int
  scores: list[float]

  def summary(self, metric: str) -> dict[str, Any]:
    """Entries of an artifact's header about the training, in which `metric` selected."""
    steps = {"best_step": self.best_step, "best_epoch": self.best_epoch}
    if self.best is None:
      return steps
    return {"valid": {metric: self.best}, "valid_by_epoch": self.scores, **steps}


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
  trackers: Sequence[str] = ("tensorboard",),
  settings: Mapping[str, Any] | None = None,
) -> Result:
  """Trains to task.steps, from the newest checkpoint in `folder` if there is one.

  Validates every task.validate_every steps and at the end, and returns the best parameters; without
  task.validate it returns the last. With several processes all must call it, and all go through
  the same steps.

  Args:
    log_every: steps between two lines of the log.
    save_every, save_minutes: as in SaveSchedule; also saves at the end.
    keep: the number of newest checkpoints that are kept.
    profile_steps: if above 0, writes a trace of that many steps to folder/trace.
    steps_at_once: steps that go to the device in one call, for steps shorter than the call itself;
      fewer before a validation or a save.
    trackers: where metrics are shown, out of tracker.TRACKERS.
    settings: flat configuration, for trackers.

  Raises:
    Interrupted: after SIGINT or SIGTERM, when everything is saved.
    Diverged: the loss is not finite.
    UserError: the disk refuses what is written.
  """
  check_model_equal(task.model)
  place_model(task.model)
  graph, params, frozen = nnx.split(task.model, nnx.Param, ...)
  state = initial_state(params, task.optimizer)
  best = {"score": np.asarray(-np.inf), "step": np.asarray(0)}
  sender = _Sender(task, graph, frozen, state, steps_at_once)
  batches = grain.experimental.ThreadPrefetchIterDataset(
    task.batches, prefetch_buffer_size=4 * task.microbatches * steps_at_once
  )
  iterator = iter(batches)
  checkpoints = Checkpoints(folder, keep=keep)
  if checkpoints.latest is not None:
    saved = checkpoints.restore({"train": state, "best": best}, iterator)
    state, best = saved["train"], saved["best"]
  step = int(state["step"])
  profile_steps = profile_steps if processes.is_main() else 0
  trace = Trace(folder / "trace", profile_steps, task.steps - step)
  in_flight = InFlight()
  schedule = SaveSchedule(save_every, save_minutes)

  with (
    checkpoints,
    StopRequest() as stop_request,
    _Metrics(
      task, MetricsLog(folder, step, trackers, settings), step, checkpoints, log_every
    ) as metrics,
    contextlib.closing(trace),
    contextlib.closing(iterator),
  ):
    while step < task.steps:
      until_validation = task.validate_every - step % task.validate_every
      limit = min(task.steps - step, until_validation, schedule.steps_left(step))
      steps = sender.take(iterator, limit)
      if not sender.is_compiled:
        reporter.info(f"{task.name}: compiling the first step ...")
        sender.compile(state, steps)
        metrics.start()
      trace.before(len(steps))
      state, scalars = sender.send(state, steps)
      step += len(steps)
      metrics.add(step, scalars, steps)
      in_flight.add(scalars["loss"])
      if trace.is_complete(len(steps)):
        # one process alone is here: it must not fetch, and so not raise, before the others do
        with metrics.throughput.paused():
          reporter.info(trace.write(scalars["loss"]))
      if task.validate and (step % task.validate_every == 0 or step == task.steps):
        # never judge or keep parameters that came out of a NaN: paused raises Diverged before
        with metrics.paused(until=step), metrics.progress.validation():
          scores = task.validate(nnx.merge(graph, state["params"], frozen))
          metrics.add_validation(step, scores)
          if scores[task.select] > best["score"]:
            best = {"score": np.asarray(scores[task.select]), "step": np.asarray(step)}
            checkpoints.save_best(step, state["params"])
      signal_name = stop_request.signal_name()
      if signal_name or schedule.due(step) or step == task.steps:
        with metrics.paused(until=step):
          checkpoints.save(step, {"train": state, "best": best}, iterator)
          schedule.saved()
      if signal_name:
        checkpoints.wait()
        raise Interrupted(
          f"{signal_name} at step {step} of {task.steps}: saved in {checkpoints.folder}; "
          "run the same command again to go on"
        )
    checkpoints.wait()
    params, best_step = state["params"], step
    if task.validate:
      best_step = int(best["step"])
      params = checkpoints.restore_best(best_step, params)
  if rates := metrics.throughput.overall():
    reporter.info(f"{task.name}: {describe_rates(rates)}")
  return Result(
    nnx.merge(graph, params, frozen),
    float(best["score"]) if task.validate else None,
    best_step,
    -(-best_step // task.steps_per_epoch),
    read_values(folder, f"valid/{task.select}"),
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
      state_shardings=sharding.shardings_of(state) if is_partitioned() else None,
    )
    self._jitted = step if at_once == 1 else make_multi_step(step, at_once)
    self._compiled: jax.stages.Compiled | None = None

  @property
  def is_compiled(self) -> bool:
    return self._compiled is not None

  def compile(self, state, steps: Steps) -> None:
    """Compiles for the shapes and shardings of these arguments, once. `send` refuses others, so
    nothing recompiles."""
    self._compiled = self._jitted.lower(state, self._frozen, *self._arguments(steps)).compile()

  def take(self, iterator: grain.DatasetIterator, limit: int) -> Steps:
    """The batches of the next steps, at most `limit` of them."""
    count = min(limit, self._at_once)
    return [[next(iterator) for _ in range(self._microbatches)] for _ in range(count)]

  def send(self, state, steps: Steps):
    """The state after the steps, and their metrics."""
    return self._compiled(state, self._frozen, *self._arguments(steps))

  def _arguments(self, steps: Steps) -> tuple:
    batches = [_stack(batches) if len(batches) > 1 else batches[0] for batches in steps]
    if self._at_once == 1:
      return (sharding.device_put_batch(batches[0]),)
    padding = [batches[-1]] * (self._at_once - len(batches))
    return sharding.device_put_batch(_stack(batches + padding)), np.int32(len(batches))


def _stack(batches: list[Any]) -> Any:
  return jax.tree.map(lambda *x: np.stack(x), *batches)


class _Metrics:
  """Log, rates and progress of a run; as a context, closes them.

  Device scalars of recent steps are fetched only when they are at least `delay` steps old, so that
  the device never waits for the host.
  """

  def __init__(self, task: Task, log: MetricsLog, step: int, checkpoints: Checkpoints, delay: int):
    self._task, self._checkpoints, self._delay, self._first_step = task, checkpoints, delay, step
    self._log = log
    self._pending: collections.deque[tuple[int, dict[str, jax.Array], Steps]] = collections.deque()
    self.throughput = Throughput(task.unit)
    self.progress = StepProgress(
      task.name,
      steps=task.steps,
      steps_per_epoch=task.steps_per_epoch,
      validate_every=task.validate_every,
    )

  def __enter__(self) -> "_Metrics":
    return self

  def __exit__(self, *error) -> None:
    self.progress.close()
    self._log.close(finished=error[0] is None)

  def start(self) -> None:
    """Starts the clock and the progress bar: the first step is compiled."""
    with self.throughput.paused():
      self.progress.start(self._first_step)

  def add(self, step: int, scalars: dict[str, jax.Array], steps: Steps) -> None:
    """The batches of the steps that end with number `step`, and the metrics of all in one: scalars
    of a single step, or arrays whose first places are theirs."""
    self._pending.append((step, scalars, steps))
    amounts = [self._task.amounts(batch) for batches in steps for batch in batches]
    self.throughput.started(scalars["loss"], Amounts.sum(amounts), len(steps))
    self.progress.advance(len(steps))
    if step // self._delay > (step - len(steps)) // self._delay:
      self._fetch(until=step - self._delay)

  def add_validation(self, step: int, scores: Mapping[str, float]) -> None:
    """Logs the metrics of a validation and prints the one that selects."""
    task = self._task
    self._log.write(step, {f"valid/{name}": value for name, value in scores.items()})
    epoch = -(-step // task.steps_per_epoch)
    reporter.info(
      f"{task.name} epoch {epoch}, step {step}: valid {task.select} {scores[task.select]:.4f}"
    )

  @contextlib.contextmanager
  def paused(self, until: int) -> Iterator[None]:
    """Logs the steps up to `until` first, and leaves the time of the block out of the rates. Raises
    Diverged for a step whose loss is not finite."""
    self._fetch(until)
    with self.throughput.paused():
      yield

  def _fetch(self, until: int) -> None:
    """Writes the mean over the pending steps up to `until`."""
    ready = []
    while self._pending and self._pending[0][0] <= until:
      ready.append(self._pending.popleft())
    if not ready:
      return
    fetched = jax.device_get([scalars for _, scalars, _ in ready])
    values: dict[str, list[float]] = {name: [] for name in fetched[0]}
    for (last, _, steps), scalars in zip(ready, fetched, strict=True):
      for name, value in scalars.items():
        values[name] += np.atleast_1d(value)[: len(steps)].tolist()
      losses = zip(values["loss"][-len(steps) :], steps, strict=True)
      for step, (loss, batches) in enumerate(losses, last - len(steps) + 1):
        if not math.isfinite(loss):
          self._raise_diverged(step, loss, batches)
    step = ready[-1][0]
    mean = {name: sum(of_steps) / len(of_steps) for name, of_steps in values.items()}
    mean["learning_rate"] = float(self._task.schedule(step - 1))
    rates = self.throughput.read()
    self._log.write(step, mean | rates)
    if rates:  # else the bar keeps showing the last ones
      text = f"loss {mean['loss']:.4f}, {describe_rates(rates)}"
      self.progress.show(text, self.throughput.seconds_per_step())

  def _raise_diverged(self, step: int, loss: float, batches: list[Any]) -> None:
    self._checkpoints.wait()
    blamed = "; ".join(map(self._task.blame, batches))
    raise Diverged(
      f"{self._task.name}: loss is {loss} at step {step}, {blamed}; "
      f"{self._checkpoints.last_good()}; a smaller learning_rate or clip may help"
    )
