"""What library code tells the user: lines, warnings, progress. Nothing else in it prints.

Commands print nothing by themselves either. A process that is not the first of its run, and a test,
calls `mute`.
"""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

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
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def warn(text: str) -> None:
  """Prints "warning: text" to stderr."""
  tqdm.write(f"warning: {text}", file=sys.stderr)


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
  """A progress bar on stderr with the remaining time; a whole line every half minute where stderr
  is no terminal.

  Use it around an iterable, or as a context manager with `total` and `update(n)`. Nothing is shown
  of work that takes less than `delay` seconds. Other options are tqdm's.
  """
  terminal = sys.stderr.isatty()
  if not terminal:
    options |= {"mininterval": LINE_SECONDS, "maxinterval": 2 * LINE_SECONDS}
  kind = tqdm if terminal else _Lines
  return kind(
    iterable,
    label,
    total=total,
    unit=unit,
    delay=delay,
    leave=leave and terminal,
    disable=_muted,
    **options,
  )


class _Lines(tqdm):
  """tqdm that ends every state with a newline instead of drawing over the last one."""

  @staticmethod
  def status_printer(file):
    def print_status(text: str) -> None:
      if text.strip():
        file.write(f"{text.strip()}\n")
        file.flush()

    return print_status
