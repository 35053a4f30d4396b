"""Mistakes in a file: a reader raises the first one, a check lists them all."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import parse_json, read_bytes
from mmesid_jax.files.unicode_text import NO_UNICODE, is_unicode

T = TypeVar("T")
NOT_JSON, NOT_UNICODE = "not JSON", "not Unicode"  # kinds of lines that no reader takes
SHOWN = 3  # number of places that are shown for every kind of mistake


class Mistake(NamedTuple):
  """A mistake in a file: at a line, at a row, or in the file as a whole."""

  kind: str  # mistakes of one kind are listed together
  text: str  # what is wrong and what was expected
  line: int | None = None  # of a text file, from 1
  row: int | None = None  # of a table, from 0

  def within(self, file: str | os.PathLike) -> str:
    """Formats the mistake as one line that begins with the name of the file."""
    if self.line is not None:
      return f"{file}:{self.line}: {self.text}"
    return f"{file}: {self.text}" if self.row is None else f"{file}: row {self.row} {self.text}"


def raise_first(file: str | os.PathLike, mistakes: Iterable[Mistake]) -> None:
  """Raises UserError for the first mistake, if there is one."""
  for mistake in mistakes:
    raise UserError(mistake.within(file))


def require_valid(file: str | os.PathLike, entries: Iterable[T | Mistake]) -> Iterator[T]:
  """Yields the entries; raises UserError at the first that is a Mistake."""
  for entry in entries:
    if isinstance(entry, Mistake):
      raise UserError(entry.within(file))
    yield entry


@dataclasses.dataclass
class _Kind:
  """All mistakes of one kind."""

  first: Mistake
  last_place: int | None
  next_places: list[int]  # the first few after `first`
  count_after_first: int = 0


def format_problems(file: str | os.PathLike, mistakes: Iterable[Mistake]) -> Iterator[str]:
  """Yields one line per kind of mistake: the first mistake, the next places, and the number."""
  kinds: dict[str, _Kind] = {}
  for mistake in mistakes:
    place = mistake.row if mistake.line is None else mistake.line
    kind = kinds.setdefault(mistake.kind, _Kind(mistake, place, []))
    if place == kind.last_place:
      continue  # the first mistake itself, or a line that has the mistake twice
    kind.last_place, kind.count_after_first = place, kind.count_after_first + 1
    if len(kind.next_places) < SHOWN - 1:
      kind.next_places.append(place)
  for kind in kinds.values():
    yield kind.first.within(file) + _format_next_places(kind)


def _format_next_places(kind: _Kind) -> str:
  count = kind.count_after_first
  if not count:
    return ""
  unit = ("row" if kind.first.line is None else "line") + ("s" if count > 1 else "")
  dots = ", ..." if count > len(kind.next_places) else ""
  return f" (and {count:,} more {unit}: {', '.join(map(str, kind.next_places))}{dots})"


def read_json_lines(path: Path) -> Iterator[tuple[int, object]]:
  """Yields (line number, value) for every line of a .jsonl file.

  The value is a Mistake where the line is not JSON, or a text in it is not Unicode. Raises
  UserError for a file that cannot be read.
  """
  lines = reporter.progress(read_bytes(path).splitlines(), path.name, unit="lines")
  for number, line in enumerate(lines, start=1):
    try:
      value = parse_json(line)
    except ValueError as error:
      text = f"not JSON ({error}); expected one object per line"
      value = Mistake(NOT_JSON, text, number)
    else:
      fields = value if isinstance(value, dict) else {"the line": value}
      if wrong := [name for name, text in fields.items() if not is_unicode([name, text])]:
        value = Mistake(NOT_UNICODE, f"{wrong[0]} {NO_UNICODE}", number)
    yield number, value


def quote(text: str) -> str:
  """Quotes a text as Python does; a long one is cut."""
  return repr(text if len(text) <= 40 else text[:37] + "...")
