"""How a run is asked to stop: by SIGINT or SIGTERM, to one of its processes or to all."""

import itertools
import os
import signal

import orbax.checkpoint as ocp

from mmesid_jax.parallel import processes

_looks = itertools.count(1)  # for as long as the process runs: the runtime wants them to grow


class Stopping:
  """While it is entered, the first SIGINT or SIGTERM is an answer to `asked`; a second one acts as
  usual.

  With several processes the runtime takes SIGTERM, at all times and every time: it tells all of
  them, and they agree on the look behind which they stop. SIGINT is passed on to it.
  """

  def __enter__(self) -> "Stopping":
    self._received: signal.Signals | None = None
    self._several = processes.several()
    caught = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
    self._old = {s: signal.signal(s, self._set) for s in caught}
    return self

  def _set(self, number, frame):
    self._received = signal.Signals(number)
    self._restore()
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)

  def _restore(self):
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def __exit__(self, *error):
    self._restore()

  def asked(self) -> str | None:
    """The signal's name, if it is time to stop; with several processes all must call equally
    often."""
    if not self._several:
      return self._received.name if self._received else None
    return "SIGTERM" if ocp.multihost.reached_preemption(next(_looks)) else None
