"""When a run saves."""

import time
from collections.abc import Callable

from mmesid_jax.parallel import processes

LOOK_EVERY = 10  # looks at the clock; with several processes one asks the first what it says


class SaveTimes:
  """Every `every` steps, and `minutes` after the last save or the start where that comes first;
  0 minutes: by steps only. `clock` gives seconds; of several processes the first one's counts."""

  def __init__(self, every: int, minutes: float, clock: Callable[[], float] = time.monotonic):
    self._every, self._seconds, self._clock = every, 60 * minutes, clock
    self._last = clock()
    self._looks = 0

  def steps_left(self, step: int) -> int:
    """How many steps may be done at once, after this one, until it is time by their number."""
    return self._every - step % self._every

  def due(self, step: int) -> bool:
    """Whether to save behind this step; with several processes all must call equally often."""
    return self._late() or step % self._every == 0

  def _late(self) -> bool:
    self._looks += 1
    if self._seconds == 0 or (processes.several() and self._looks % LOOK_EVERY):
      return False
    return bool(processes.first_says(self._clock() - self._last >= self._seconds))

  def saved(self) -> None:
    """The minutes count from now."""
    self._last = self._clock()
