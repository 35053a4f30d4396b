"""How far the host runs ahead of the device."""

import collections
import time
from collections.abc import Callable

import jax

FEWEST = 2  # calls: one that the device works on, and one that it finds when it is done
SECONDS = 1.0  # that the calls of short steps may take together


class InFlight:
  """Calls that the device has not finished: FEWEST, or as many as take about SECONDS.

  A run that is asked to stop waits for them before it saves.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._running: collections.deque[jax.Array] = collections.deque()
    self._limit = FEWEST
    self._finished, self._since = 0, None  # calls since the last wait, and when it ended

  def add(self, output: jax.Array) -> None:
    """Waits until another call may be sent; `output` is ready once the last one is done."""
    self._running.append(output)
    while self._running and self._running[0].is_ready():
      self._running.popleft()
      self._finished += 1
    while len(self._running) >= self._limit:
      self._running.popleft().block_until_ready()
      self._finished += 1
      self._adapt(self._clock())

  def _adapt(self, now: float) -> None:
    """Sets the limit by how long the calls since the last wait took."""
    if self._since is not None:
      fitting = SECONDS * self._finished / max(now - self._since, 1e-9)
      # at most twice the last one: two that end at nearly the same time say little
      self._limit = max(FEWEST, min(2 * self._limit, int(fitting)))
    self._finished, self._since = 0, now
