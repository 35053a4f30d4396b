"""A trace of a few steps, for TensorBoard or Perfetto."""

import pathlib

import jax

SETTLED = 10  # steps of a run before the trace: behind compilation and the first slow ones


class Trace:
  """Records `steps` of the `remaining` steps of a run into `folder`, after SETTLED where there are
  enough; 0 records none."""

  def __init__(self, folder: pathlib.Path, steps: int, remaining: int):
    self._folder = folder
    self._first = max(0, min(SETTLED, remaining - steps))
    self._stop = self._first + steps if steps else -1
    self._seen, self._on = 0, False

  def before_step(self) -> None:
    if self._seen == self._first and self._stop > 0:
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._on = True

  def after_step(self, output: jax.Array) -> str | None:
    """A line to print when the trace was written."""
    self._seen += 1
    if self._on and self._seen == self._stop:
      jax.block_until_ready(output)
      return self.close()
    return None

  def close(self) -> str | None:
    """Writes what was recorded, if anything is being recorded."""
    if not self._on:
      return None
    self._on = False
    jax.profiler.stop_trace()
    steps = self._seen - self._first
    return f"trace of {steps} steps in {self._folder}: tensorboard --logdir, or ui.perfetto.dev"
