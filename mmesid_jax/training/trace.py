"""A trace of a few steps, for TensorBoard or Perfetto."""

import pathlib

import jax

SETTLED = 10  # steps of a run before the trace: behind compilation and the first slow ones


class Trace:
  """Records `steps` of the `remaining` steps of a run into `folder`, after SETTLED where there are
  enough, and those that go to the device with them; 0 records none."""

  def __init__(self, folder: pathlib.Path, steps: int, remaining: int):
    first = max(0, min(SETTLED, remaining - steps))
    self._traced = range(first, min(first + steps, remaining))
    self._folder, self._done, self._recording = folder, 0, False
    self._first = 0  # step that was recorded

  def before(self, count: int) -> None:
    """So many steps are about to be sent."""
    if self._traced and self._done <= self._traced.start < self._done + count:
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._recording, self._first = True, self._done

  def after(self, count: int, output: jax.Array) -> str | None:
    """They were sent; a line to print when the trace was written."""
    self._done += count
    if not self._recording or self._done < self._traced.stop:
      return None
    jax.block_until_ready(output)
    self.close()
    steps = self._done - self._first
    return f"trace of {steps} steps in {self._folder}: tensorboard --logdir, or ui.perfetto.dev"

  def close(self) -> None:
    """Writes what is being recorded, if anything is: the run ended in the midst of it."""
    if self._recording:
      self._recording = False
      jax.profiler.stop_trace()
