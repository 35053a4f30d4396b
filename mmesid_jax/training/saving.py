"""When a run saves."""

import time
from collections.abc import Callable


class SaveTimes:
  """Every `every` steps, and `minutes` after the last save or the start where that comes first;
  0 minutes: by steps only. `clock` gives seconds."""

  def __init__(self, every: int, minutes: float, clock: Callable[[], float] = time.monotonic):
    self._every, self._seconds, self._clock = every, 60 * minutes, clock
    self._last = clock()

  def steps_left(self, step: int) -> int:
    """How many steps may be done at once, after this one, until it is time by their number."""
    return self._every - step % self._every

  def due(self, step: int) -> bool:
    """Whether to save behind this step."""
    late = self._seconds > 0 and self._clock() - self._last >= self._seconds
    return late or step % self._every == 0

  def saved(self) -> None:
    """The minutes count from now."""
    self._last = self._clock()
