"""A trace of a few steps, for TensorBoard or Perfetto."""

import pathlib

import jax

SETTLED = 10  # steps of a run before the trace: after compilation and the first slow ones


class Trace:
  """Records `steps` of the `remaining` steps of a run into `folder`; 0 records none.

  It begins after SETTLED steps if there are enough, and includes the steps that go to the device in
  the same call.
  """

  def __init__(self, folder: pathlib.Path, steps: int, remaining: int):
    first = max(0, min(SETTLED, remaining - steps))
    self._traced = range(first, min(first + steps, remaining))
    self._folder, self._done, self._recording = folder, 0, False
    self._first = 0  # the first step that is recorded

  def before(self, count: int) -> None:
    """Starts recording if one of the next `count` steps is to be traced."""
    if self._traced and self._done <= self._traced.start < self._done + count:
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._recording, self._first = True, self._done

  def is_complete(self, count: int) -> bool:
    """Whether all steps to be traced are sent, now that `count` more are. Call once a step."""
    self._done += count
    return self._recording and self._done >= self._traced.stop

  def write(self, output: jax.Array) -> str:
    """Waits for `output`, writes the trace, and returns a line that says where it is."""
    jax.block_until_ready(output)
    self.close()
    steps = self._done - self._first
    return f"trace of {steps} steps in {self._folder}: tensorboard --logdir, or ui.perfetto.dev"

  def close(self) -> None:
    """Writes an unfinished recording of a run that ended early."""
    if self._recording:
      self._recording = False
      jax.profiler.stop_trace()
