"""When a run saves, and how it is asked to stop: by SIGINT or SIGTERM to any of its processes."""

import itertools
import os
import signal
import time
from collections.abc import Callable

import orbax.checkpoint as ocp

from mmesid_jax.parallel import processes

CLOCK_EVERY = 10  # with several processes, the clock of the first is asked for every tenth time

_preemption_step = itertools.count(1)  # the runtime wants a number that grows for the whole process


class StopRequest:
  """As a context, catches the first SIGINT or SIGTERM; a second one acts as usual.

  With several processes the runtime catches every SIGTERM at any time: it tells all of them, and
  they agree on the step after which they stop. SIGINT is passed on to it.
  """

  def __enter__(self) -> "StopRequest":
    self._received: signal.Signals | None = None
    self._is_multiprocess = processes.is_multiprocess()
    caught = (signal.SIGINT,) if self._is_multiprocess else (signal.SIGINT, signal.SIGTERM)
    self._old_handlers = {s: signal.signal(s, self._receive) for s in caught}
    return self

  def _receive(self, number, frame):
    self._received = signal.Signals(number)
    self._restore_handlers()
    if self._is_multiprocess:
      os.kill(os.getpid(), signal.SIGTERM)

  def _restore_handlers(self):
    for number, handler in self._old_handlers.items():
      signal.signal(number, handler)

  def __exit__(self, *error):
    self._restore_handlers()

  def signal_name(self) -> str | None:
    """The signal's name if it is time to stop. With several processes all must call it equally
    often."""
    if not self._is_multiprocess:
      return self._received.name if self._received else None
    return "SIGTERM" if ocp.multihost.reached_preemption(next(_preemption_step)) else None


class SaveSchedule:
  """Saves every `every` steps, and `minutes` after the start or last save if that comes first.

  minutes = 0: by steps only. `clock` returns seconds; of several processes the first one's counts.
  """

  def __init__(self, every: int, minutes: float, clock: Callable[[], float] = time.monotonic):
    self._every, self._seconds, self._clock = every, 60 * minutes, clock
    self._last = clock()
    self._calls = 0

  def steps_left(self, step: int) -> int:
    """How many steps may follow this one before the next save by steps."""
    return self._every - step % self._every

  def due(self, step: int) -> bool:
    """Whether to save after this step. With several processes all must call it equally often."""
    return self._is_late() or step % self._every == 0

  def _is_late(self) -> bool:
    self._calls += 1
    if self._seconds == 0 or (processes.is_multiprocess() and self._calls % CLOCK_EVERY):
      return False
    return bool(processes.broadcast(self._clock() - self._last >= self._seconds))

  def saved(self) -> None:
    """Counts the minutes from now."""
    self._last = self._clock()
