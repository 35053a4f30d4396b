"""The training loop of all stages: one compiled step, logging that never waits, checkpoints,
resuming."""

import collections
import dataclasses
import functools
import math
import pathlib
import signal
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmesid_jax.errors import Diverged, Interrupted
from mmesid_jax.training.checkpoint import Checkpoints
from mmesid_jax.training.logging import MetricsLog, progress
from mmesid_jax.training.profile import Trace
from mmesid_jax.training.throughput import Amounts, Throughput, describe


@dataclasses.dataclass(frozen=True)
class Task:
  """What a stage hands to the loop.

  loss(model, batch, key) -> float32 scalar, dict of further scalars; validate(model) -> metrics, of
  which `select` is maximised. `amounts` counts what a batch gives to do, its targets or items named
  by `unit`; `blame` names what stands in a batch when its loss is not finite.
  """

  name: str
  model: nnx.Module
  loss: Callable[[nnx.Module, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
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


@dataclasses.dataclass(frozen=True)
class Result:
  """The trained model with its best parameters in place, what it scored, and how often a step
  compiled."""

  model: nnx.Module
  best: float
  best_step: int
  compilations: int


def make_step(task: Task, graph: nnx.GraphDef):
  """The jitted step (state, frozen, batch) -> (state, metrics); state is donated.

  state = {"params", "optimizer", "step"}. The key of a step is the seed folded with the step's
  number, so a resumed run draws what an uninterrupted one would have.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, frozen, batch):
    key = jax.random.fold_in(jax.random.key(task.seed), state["step"])

    def loss(params):
      return task.loss(nnx.merge(graph, params, frozen), batch, key)

    (value, extra), gradient = jax.value_and_grad(loss, has_aux=True)(state["params"])
    update, optimizer = task.optimizer.update(gradient, state["optimizer"], state["params"])
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient), **extra}
    return {
      "params": optax.apply_updates(state["params"], update),
      "optimizer": optimizer,
      "step": state["step"] + 1,
    }, metrics

  return step


class _Signals:
  """Turns the first SIGINT or SIGTERM into a flag that the loop reads; a second one acts as
  usual."""

  def __enter__(self):
    self.received: signal.Signals | None = None
    self._old = {s: signal.signal(s, self._set) for s in (signal.SIGINT, signal.SIGTERM)}
    return self

  def _set(self, number, frame):
    self.received = signal.Signals(number)
    self._restore()

  def _restore(self):
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def __exit__(self, *error):
    self._restore()


class _Metrics:
  """Device scalars of recent steps, fetched only when they are at least `behind` steps old."""

  def __init__(self, task: Task, log: MetricsLog, bar, checkpoints: Checkpoints, behind: int):
    self._task, self._log, self._bar, self._checkpoints = task, log, bar, checkpoints
    self._behind = behind
    self._pending: collections.deque = collections.deque()
    self._compiled = False
    self.throughput = Throughput(task.unit)

  def add(self, step: int, metrics: dict[str, jax.Array], batch: Any) -> None:
    self._pending.append((step, metrics, batch))
    if self._compiled:
      self.throughput.started(metrics["loss"], self._task.amounts(batch))
    else:  # the first step compiles: it is no measure of the rate
      jax.block_until_ready(metrics)
      self._compiled = True
      self.throughput.restart()
    if step % self._behind == 0:
      self.fetch(until=step - self._behind)

  def fetch(self, until: int) -> None:
    """Writes the mean over the steps up to `until`. Raises Diverged for the first that is not
    finite."""
    ready = []
    while self._pending and self._pending[0][0] <= until:
      ready.append(self._pending.popleft())
    if not ready:
      return
    values = jax.device_get([metrics for _, metrics, _ in ready])
    for (step, _, batch), value in zip(ready, values, strict=True):
      if not math.isfinite(value["loss"]):
        self._checkpoints.wait()
        last = self._checkpoints.latest
        good = f"the last good checkpoint is step {last}" if last else "no checkpoint was saved yet"
        raise Diverged(
          f"{self._task.name}: loss is {value['loss']} at step {step}, {self._task.blame(batch)}; "
          f"{good} in {self._checkpoints.folder}; a smaller learning_rate or clip may help"
        )
    step = ready[-1][0]
    mean = {name: float(sum(v[name] for v in values) / len(values)) for name in values[0]}
    mean["learning_rate"] = float(self._task.schedule(step - 1))
    rates = self.throughput.read()
    self._log.write(step, mean | rates)
    if rates:  # else what the bar shows is the newest that is known
      self._bar.set_postfix_str(f"loss {mean['loss']:.4f}, {describe(rates)}", refresh=False)


def fit(
  task: Task, folder: pathlib.Path, *, log_every: int, save_every: int, profile_steps: int = 0
) -> Result:
  """Trains to task.steps, from the newest checkpoint in `folder` where there is one.

  Validates every task.validate_every steps and at the end; the best parameters are kept and
  returned. profile_steps > 0 writes a trace of so many steps to folder/trace. Raises Interrupted
  after SIGINT or SIGTERM, when everything is saved; Diverged when the loss is not finite.
  """
  graph, params, frozen = nnx.split(task.model, nnx.Param, ...)
  state = {
    "params": params,
    "optimizer": jax.jit(task.optimizer.init)(params),
    "step": jnp.zeros((), jnp.int32),
  }
  best = {"score": np.asarray(-np.inf), "step": np.asarray(0)}
  train_step = make_step(task, graph)
  iterator = iter(
    grain.experimental.ThreadPrefetchIterDataset(task.batches, prefetch_buffer_size=4)
  )
  checkpoints = Checkpoints(folder)
  if checkpoints.latest is not None:
    saved = checkpoints.restore({"train": state, "best": best}, iterator)
    state, best = saved["train"], saved["best"]
  step = int(state["step"])
  log = MetricsLog(folder, step)
  trace = Trace(folder / "trace", profile_steps, task.steps - step)

  with _Signals() as signals, progress(task.name, step, task.steps) as bar:
    metrics = _Metrics(task, log, bar, checkpoints, log_every)
    try:
      while step < task.steps:
        batch = next(iterator)
        trace.before_step()
        state, scalars = train_step(state, frozen, batch)
        step += 1
        bar.update()
        metrics.add(step, scalars, batch)
        if written := trace.after_step(scalars["loss"]):
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
        stop = signals.received is not None
        if stop or step % save_every == 0 or step == task.steps:
          metrics.fetch(until=step)
          checkpoints.save(step, {"train": state, "best": best}, iterator)
          metrics.throughput.restart()
        if stop:
          checkpoints.wait()
          raise Interrupted(
            f"{signals.received.name} at step {step} of {task.steps}: saved in "
            f"{checkpoints.folder}; run the same command again to go on"
          )
      checkpoints.wait()
      params = checkpoints.restore_best(state["params"])
      if rates := metrics.throughput.overall():
        bar.write(f"{task.name}: {describe(rates)}")
    finally:
      trace.close()
      log.close()
      checkpoints.close()
  return Result(
    nnx.merge(graph, params, frozen),
    float(best["score"]),
    int(best["step"]),
    train_step._cache_size(),
  )
