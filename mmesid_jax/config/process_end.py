"""How the process of a command ends: signals become exceptions, and nothing runs after its end."""

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from mmesid_jax.errors import Interrupted

AGAIN = "what was finished is kept: run the same command again"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_status: int | None = None  # of the command that has ended in this process
_received: str | None = None  # the first signal that was raised


def open_closed_streams() -> None:
  """Opens /dev/null in the place of the streams that the caller has closed, as `>&-` does.

  Else they are None, and the next file that is opened would get what is printed.
  """
  for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  until the process ends


def raise_signals() -> None:
  """Makes SIGINT and SIGTERM raise KeyboardInterrupt with the signal's name.

  A signal that is ignored, as SIGINT after nohup, stays so. While a module is imported they end the
  process at once: extension modules print what is raised in their import, and raise another error.
  """
  for number in _SIGNALS:
    if signal.getsignal(number) not in (signal.SIG_IGN, None):
      signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
  global _received, _status
  name = signal.Signals(number).name
  if _is_importing(frame):
    os.write(2, f"stopped: {name}; {AGAIN}\n".encode())
    _status = Interrupted.status
    _end_at_once()
  _received = _received or name
  raise KeyboardInterrupt(name)


def _is_importing(frame: FrameType | None) -> bool:
  while frame is not None and frame.f_globals.get("__name__") != "importlib._bootstrap":
    frame = frame.f_back
  return frame is not None


def send_again(interrupt: KeyboardInterrupt) -> None:
  """Sends the signal again a moment later: nothing could catch it where it was raised.

  The moment is long enough for a busy machine to leave that place before.
  """
  number = signal.Signals[str(interrupt) or "SIGINT"]
  to_main = functools.partial(signal.pthread_kill, threading.main_thread().ident, number)
  threading.Timer(0.2, to_main).start()


def signal_in(error: BaseException | None) -> str | None:
  """The name of the signal that raised the error or one of its causes.

  Another error after a signal follows from it, too: extension modules that it interrupts while they
  are imported raise an ImportError without a cause. None for errors without a signal.
  """
  while error is not None:
    if isinstance(error, KeyboardInterrupt):
      return str(error) or "SIGINT"
    error = error.__cause__ or error.__context__
  return _received


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
