"""The progress of a stage in the terminal: epoch, remaining time, loss and rates."""

import contextlib
import time
from collections.abc import Iterator

from tqdm import tqdm

from mmesid_jax.display import reporter
from mmesid_jax.display.duration import format_duration

BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class StepProgress:
  """A progress bar over the steps of a stage that starts once its first step is compiled.

  The remaining time is that of the remaining steps, by the mean of those that the device has
  finished, and of the remaining validations, by the last of them. Compiling is not part of either.
  """

  def __init__(self, name: str, *, steps: int, steps_per_epoch: int, validate_every: int):
    self._name, self._steps = name, steps
    self._steps_per_epoch, self._validate_every = steps_per_epoch, validate_every
    self._step, self._validation_seconds = 0, 0.0
    self._bar: tqdm | None = None

  def start(self, step: int) -> None:
    """Draws the bar at `step` of the steps."""
    self._step = step
    self._bar = reporter.progress(
      label=self._name,
      total=self._steps,
      initial=step,
      unit="step",
      delay=0,
      leave=True,
      dynamic_ncols=True,
      bar_format=BAR,
    )

  def advance(self, steps: int) -> None:
    """More steps were sent to the device."""
    self._step += steps
    if self._bar is not None:
      self._bar.update(steps)

  def show(self, text: str, seconds_per_step: float | None) -> None:
    """Shows the epoch, the remaining time where it is known, and `text`."""
    if self._bar is None:
      return
    epoch = min(self._step // self._steps_per_epoch + 1, self._epochs)
    parts = [f"epoch {epoch} of {self._epochs}"]
    if (seconds := self.seconds_left(seconds_per_step)) is not None:
      parts.append(f"{format_duration(seconds)} left")
    self._bar.set_postfix_str(", ".join((*parts, text)), refresh=False)

  def seconds_left(self, seconds_per_step: float | None) -> float | None:
    """The remaining time in seconds; None where the time of a step is not known yet."""
    if seconds_per_step is None:
      return None
    steps_left = self._steps - self._step
    validations = -(-self._steps // self._validate_every)  # the last one is at the end
    validations_left = validations - self._step // self._validate_every if steps_left else 0
    return steps_left * seconds_per_step + validations_left * self._validation_seconds

  @contextlib.contextmanager
  def validation(self) -> Iterator[None]:
    """Times a validation."""
    start = time.monotonic()
    yield
    self._validation_seconds = time.monotonic() - start

  def close(self) -> None:
    """Leaves the bar as it is."""
    if self._bar is not None:
      self._bar.close()

  @property
  def _epochs(self) -> int:
    return -(-self._steps // self._steps_per_epoch)
