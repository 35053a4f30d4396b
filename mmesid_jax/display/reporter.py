"""Lines, warnings and progress for the user. No other module of the package prints.

All processes of a run but the first one call `mute`; tests may.
"""

import sys
import time
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from mmesid_jax.display.escape import escape_line, escape_text

T = TypeVar("T")

LINE_SECONDS = 30  # between two lines of progress where stderr is no terminal

_muted = False


def mute(muted: bool = True) -> None:
  """Silences `info` and `progress` for the whole process. Warnings are always shown."""
  global _muted
  _muted = muted


def info(text: str = "") -> None:
  """Prints one or more lines to stdout, above a progress bar if there is one."""
  if not _muted:
    _print(text, sys.stdout)


def warn(text: str) -> None:
  """Prints "warning: text" to stderr."""
  _print(f"warning: {text}", sys.stderr)


def _print(text: str, file) -> None:
  text = escape_text(text)  # titles and keys from data are printed too
  if sys.stderr.isatty():
    tqdm.write(text, file=file)  # takes the bars away and draws them again
  else:
    file.write(f"{text}\n")
  file.flush()


def progress(
  iterable: Iterable[T] | None = None,
  label: str = "",
  *,
  total: float | None = None,
  unit: str = "it",
  delay: float = 3,
  leave: bool = False,
  **options,
) -> tqdm:
  """A progress bar on stderr with the time left; a line every half minute if stderr is no terminal.

  Use it around an iterable, or as a context manager with `total` and `update(n)`.

  Args:
    iterable: what to go through; None with a context manager.
    label: the text before the bar.
    total: number of units; None = len(iterable), where it has one.
    unit: name of what is counted.
    delay: seconds before the bar appears, so that short work shows none.
    leave: whether the bar stays in the terminal at the end.
    **options: other options of tqdm.
  """
  terminal = sys.stderr.isatty()
  if not terminal:
    options |= {"mininterval": LINE_SECONDS, "maxinterval": 2 * LINE_SECONDS}
  kind = tqdm if terminal else _Lines
  return kind(
    iterable,
    escape_line(label),  # names of files are shown too
    total=total,
    unit=unit,
    delay=delay,
    leave=leave and terminal,
    disable=_muted,
    **options,
  )


class _Lines(tqdm):
  """A tqdm for files and pipes: a whole line from time to time, and no control characters."""

  def __init__(self, *args, **options):
    self._shown_at = time.monotonic()
    super().__init__(*args, **options)

  def display(self, msg: str | None = None, pos: int | None = None) -> bool:
    """Prints a line unless the last one is less than LINE_SECONDS old; tqdm asks more often."""
    if time.monotonic() - self._shown_at >= LINE_SECONDS and msg != "":  # "" takes a bar away
      self._shown_at = time.monotonic()
      self.fp.write(f"{msg or self}\n")
      self.fp.flush()
    return False  # nothing to take away

  def clear(self, nolock: bool = False) -> None:
    """Nothing: lines stay."""

  def moveto(self, n: int) -> None:
    """Nothing: there is no cursor."""
