"""What is wrong with a file: whoever reads it raises the first mistake, a check tells them all."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import read_bytes

T = TypeVar("T")
NOT_JSON = "no JSON"  # the kind of a line that is none
SHOWN = 3  # places of every kind of mistake that a check names


class Mistake(NamedTuple):
  """One of a file, at a line or at a row, or of the whole of it."""

  kind: str  # mistakes of one kind are told together
  text: str  # what is wrong, and what was expected
  line: int | None = None  # of a text, from 1
  row: int | None = None  # of a table, from 0

  def within(self, file: str | os.PathLike) -> str:
    """In one line that begins with the name of the file."""
    if self.line is not None:
      return f"{file}:{self.line}: {self.text}"
    return f"{file}: {self.text}" if self.row is None else f"{file}: row {self.row} {self.text}"


def raise_first(file: str | os.PathLike, mistakes: Iterable[Mistake]) -> None:
  """Raises UserError for the first mistake, if there is one."""
  for mistake in mistakes:
    raise UserError(mistake.within(file))


def require_valid(file: str | os.PathLike, found: Iterable[T | Mistake]) -> Iterator[T]:
  """What is found as long as it is no mistake. Raises UserError for the first."""
  for one in found:
    if isinstance(one, Mistake):
      raise UserError(one.within(file))
    yield one


@dataclasses.dataclass
class _Kind:
  first: Mistake
  last: int | None  # place
  next_places: list[int]
  more: int = 0


def format_problems(file: str | os.PathLike, mistakes: Iterable[Mistake]) -> Iterator[str]:
  """A line for every kind of mistake: the first of them, where the next are, and how many."""
  kinds: dict[str, _Kind] = {}
  for mistake in mistakes:
    place = mistake.row if mistake.line is None else mistake.line
    kind = kinds.setdefault(mistake.kind, _Kind(mistake, place, []))
    if place == kind.last:
      continue  # the first itself, or a line that has the mistake twice
    kind.last, kind.more = place, kind.more + 1
    if len(kind.next_places) < SHOWN - 1:
      kind.next_places.append(place)
  for kind in kinds.values():
    yield kind.first.within(file) + _more(kind)


def _more(kind: _Kind) -> str:
  if not kind.more:
    return ""
  unit = ("row" if kind.first.line is None else "line") + ("s" if kind.more > 1 else "")
  dots = ", ..." if kind.more > len(kind.next_places) else ""
  return f" (and {kind.more:,} more {unit}: {', '.join(map(str, kind.next_places))}{dots})"


def read_json_lines(path: Path) -> Iterator[tuple[int, object]]:
  """Number and content of every line of a .jsonl file, a Mistake where it is not JSON. Raises
  UserError for a file that cannot be read."""
  lines = tqdm(read_bytes(path).splitlines(), path.name, unit="lines", delay=3, leave=False)
  for number, line in enumerate(lines, start=1):
    try:
      yield number, json.loads(line)
    except (ValueError, RecursionError) as error:
      yield number, Mistake(NOT_JSON, f"not JSON ({error}); expected one object a line", number)


def quote(text: str) -> str:
  """As Python writes it, cut where it is long."""
  return repr(text if len(text) <= 40 else text[:37] + "...")
