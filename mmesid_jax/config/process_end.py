"""How the process of a command ends: signals become exceptions, and nothing runs after its end."""

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
from typing import NoReturn

_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

_status: int | None = None  # of the command that has ended in this process


def raise_signals() -> None:
  """Makes SIGINT and SIGTERM raise KeyboardInterrupt with the signal's name.

  A signal that is ignored, as SIGINT after nohup, stays so.
  """
  for number, default in _SIGNALS.items():
    if signal.getsignal(number) is default:
      signal.signal(number, _raise)


def _raise(number, frame) -> NoReturn:
  raise KeyboardInterrupt(signal.Signals(number).name)


def send_again(interrupt: KeyboardInterrupt) -> None:
  """Sends the signal again a moment later: nothing could catch it where it was raised.

  The moment is long enough for a busy machine to leave that place before.
  """
  number = signal.Signals[str(interrupt) or "SIGINT"]
  to_main = functools.partial(signal.pthread_kill, threading.main_thread().ident, number)
  threading.Timer(0.2, to_main).start()


def signal_in(error: BaseException | None) -> str | None:
  """The name of the signal that raised the error or one of its causes; None for other errors."""
  while error is not None:
    if isinstance(error, KeyboardInterrupt):
      return str(error) or "SIGINT"
    error = error.__cause__ or error.__context__
  return None


def end_process(status: int) -> NoReturn:
  """Raises SystemExit; the process ends once what is registered with atexit is done.

  Threads of libraries may still run then: of XLA, which free arrays, or of Grain, which read ahead.
  One that calls into an interpreter that is being taken down would abort the process. So it is not
  taken down. Signals, for example a second SIGTERM, change nothing any more.
  """
  global _status
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  _status = status if isinstance(status, int) else 1  # sys.exit prints a message
  sys.exit(status)


def _end_at_once() -> None:
  if _status is not None:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
        stream.flush()
    os._exit(_status)


atexit.register(_end_at_once)  # before other modules register theirs, and so called after them
