"""Measures how long a run takes from SIGTERM to saved, by the time of a step:
python benchmarks/stop_seconds.py [--seconds=0.001,0.1,2] [--stops=5]

The model multiplies matrices of 512 x 512 as often as fills the time of a step, so what is saved is
small; a larger state takes as much longer as the disk needs to write it.
"""

import os
import pathlib
import random
import signal
import statistics
import tempfile
import threading
import time

import timing
from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import Interrupted

SECONDS = flags.DEFINE_list("seconds", ["0.001", "0.01", "0.1", "0.5", "2", "5"], "Of a step.")
STOPS = flags.DEFINE_integer("stops", 5, "How often each is stopped.", lower_bound=1)
WIDTH = 512


def main(argv: list[str]) -> None:
  del argv
  once = seconds_of_step(100) / 100
  print(timing.environment())
  print("seconds of a step: asked for, measured | from SIGTERM to saved: median, longest")
  for wanted in map(float, SECONDS.value):
    products = max(1, round(wanted / once))
    steps, stops = zip(*(stop(products, wanted) for _ in range(STOPS.value)), strict=True)
    step, median = statistics.median(steps), statistics.median(stops)
    print(f"{wanted:5}, {step:.4f} | {median:.2f}, {max(stops):.2f}", flush=True)


def make_task(products: int, steps: int, sent: list[float]):
  """A task of that many steps; `sent` gets the times at which they are sent."""
  import grain
  import jax
  import jax.numpy as jnp
  import optax
  from flax import nnx

  from mmesid_jax.training.loop import Task
  from mmesid_jax.training.throughput import Amounts

  class Matrix(nnx.Module):
    def __init__(self):
      self.weight = nnx.Param(jnp.eye(WIDTH))

  def loss(model, batch, key):
    fixed = jax.lax.stop_gradient(model.weight[...])
    product = jax.lax.fori_loop(0, products, lambda _, x: x @ fixed, fixed)
    return ((model.weight[...] * product).sum(), 1.0), {}

  schedule = optax.constant_schedule(0.0)
  return Task(
    name="stop",
    model=Matrix(),
    loss=loss,
    batches=grain.MapDataset.range(8).repeat().batch(8).to_iter_dataset(),
    steps=steps,
    steps_per_epoch=steps,
    validate_every=steps,
    optimizer=optax.sgd(schedule),
    schedule=schedule,
    validate=lambda model: {"score": 0.0},
    select="score",
    unit="items",
    amounts=lambda batch: sent.append(time.monotonic()) or Amounts(len(batch), flops=0.0),
    blame=lambda batch: "nothing",
    seed=0,
  )


def seconds_of_step(products: int) -> float:
  with tempfile.TemporaryDirectory() as folder:
    start = run(pathlib.Path(folder), products, steps=2)
    return (run(pathlib.Path(folder) / "more", products, steps=12) - start) / 10


def run(folder: pathlib.Path, products: int, steps: int) -> float:
  from mmesid_jax.training.loop import fit

  start = time.monotonic()
  fit(make_task(products, steps, []), folder, log_every=50, save_every=10**6)
  return time.monotonic() - start


def stop(products: int, step_seconds: float) -> tuple[float, float]:
  """Stops a run a few steps after its first one; returns the seconds of a step, and those from the
  signal to the end."""
  from mmesid_jax.training.loop import fit

  sent: list[float] = []
  signals: list[float] = []

  def send_signal() -> None:
    while len(sent) < 5:
      time.sleep(0.01)
    time.sleep(3 + step_seconds * random.random())
    signals.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGTERM)

  with tempfile.TemporaryDirectory() as folder:
    thread = threading.Thread(target=send_signal)
    thread.start()
    try:
      task = make_task(products, 10**6, sent)
      fit(task, pathlib.Path(folder), log_every=50, save_every=10**6)
    except Interrupted:
      return (sent[-1] - sent[2]) / (len(sent) - 3), time.monotonic() - signals[0]
    finally:
      thread.join()
  raise AssertionError("it ended before it was stopped")


if __name__ == "__main__":
  command_line.run_command(main)
