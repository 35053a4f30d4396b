"""Tables with a row an event or an item: CSV and its like, Parquet, or data frames in memory."""

import csv
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import compressed_lines, events
from mmesid_jax.ingest.catalogue import Item
from mmesid_jax.ingest.records import read_parquet_rows as rows_of_parquet

# A data frame of pandas or Polars, or lists by name; or a file.
Source = Path | Mapping[str, Iterable]
EVENT = ("user", "item", "time", "rating")
NO_GENRES = "(no genres listed)"  # how MovieLens says so
ITEM = ("item", "title", "brand", "categories", "description", "image")


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a table is written, and what its columns are called: by our name theirs, "" or absent for
  what it lacks."""

  columns: Mapping[str, str]
  delimiter: str = ""  # "" = a comma, or a tab in .tsv files
  header: tuple[str, ...] = ()  # names of the columns; () = the first line holds them
  fallback: str = ""  # encoding of lines that are not UTF-8; "" = there should be none
  quotes: bool = True
  lists: str = "|"  # between the categories of an item


def event_rows(
  source: Source, layout: Layout, bad: compressed_lines.BadLines
) -> Iterator[tuple[str, str, int | None, float]]:
  """User's key, item's key, seconds (None without a column for them) and rating of every row.
  Raises UserError for a file that cannot be read or lacks a column."""
  timed = bool(layout.columns.get("time"))
  for number, row in _rows(source, layout, EVENT, bad):
    try:
      yield (
        events.parse_key(row["user"]),
        events.parse_key(row["item"]),
        events.parse_time(row["time"]) if timed else None,
        events.parse_rating(row.get("rating")),
      )
    except ValueError as error:
      bad.add(_name(source), number, error)


def item_rows(source: Source, layout: Layout, bad: compressed_lines.BadLines) -> Iterator[Item]:
  """What every row says of its item. Raises UserError as `event_rows` does."""
  for number, row in _rows(source, layout, ITEM, bad):
    try:
      yield Item(
        key=events.parse_key(row["item"]),
        title=_text(row, "title"),
        brand=_text(row, "brand"),
        categories=_list(row.get("categories"), layout.lists),
        description=_text(row, "description"),
        images=_list(row.get("image"), None),
      )
    except ValueError as error:
      bad.add(_name(source), number, error)


def _text(row: Mapping[str, Any], name: str) -> str | None:
  value = row.get(name)
  if _is_nothing(value):
    return None
  if not isinstance(value, str | int | float):
    raise ValueError(f"{name} is a {type(value).__name__}; expected a text")
  return str(value).strip() or None


def _list(value: Any, between: str | None) -> list[str] | None:
  """The texts of one (between: what stands between its parts), of a list, or of the first of a list
  of lists, as paths of categories are. Raises ValueError for anything else."""
  if _is_nothing(value):
    return None
  if isinstance(value, str | int | float):
    value = str(value).split(between) if between else [value]
  elif isinstance(value, Mapping) or not isinstance(value, Iterable):
    raise ValueError(f"a {type(value).__name__} where a text or a list of them is expected")
  parts = _plain(value)
  if parts and isinstance(parts[0], list | tuple):
    parts = parts[0]
  texts = (str(part).strip() for part in parts if not _is_nothing(part))
  return [text for text in texts if text and text != NO_GENRES] or None


def _is_nothing(value: Any) -> bool:
  """None, and what data frames write for it: NaN, NaT and NA are not equal to themselves."""
  return value is None or type(value).__name__ == "NAType" or (value != value) is True


def _name(source: Source) -> str:
  return str(source) if isinstance(source, Path) else "row"


def _rows(
  source: Source, layout: Layout, wanted: tuple[str, ...], bad: compressed_lines.BadLines
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Number of the line or row, from 1, and values by our names."""
  theirs = {ours: layout.columns[ours] for ours in wanted if layout.columns.get(ours)}
  if not isinstance(source, Path):
    return _of_frame(source, theirs)
  if compressed_lines.file_format(source) == compressed_lines.PARQUET:
    names = [*theirs.values()]
    found = rows_of_parquet(source, names, names)
    return ((n, {ours: row[name] for ours, name in theirs.items()}) for n, row in found)
  return _of_lines(source, layout, theirs, bad)


def _of_frame(
  frame: Mapping[str, Iterable], theirs: Mapping[str, str]
) -> Iterator[tuple[int, dict[str, Any]]]:
  _check_columns("the data frame", theirs, [*getattr(frame, "columns", frame)])
  columns = [frame[name] for name in theirs.values()]
  plain = [[None if _is_nothing(x) else x for x in _plain(column)] for column in columns]
  if len({len(column) for column in plain}) > 1:
    raise UserError("the columns are not of one length")
  for number, values in enumerate(zip(*plain, strict=True), start=1):
    yield number, dict(zip(theirs, values, strict=True))


def _plain(column: Iterable) -> list:
  """A column as Python's own values, by whichever name its library has for that."""
  for name in ("to_list", "tolist"):
    if convert := getattr(column, name, None):
      return convert()
  return list(column)


def _check_columns(where: object, theirs: Mapping[str, str], known: Sequence[str]) -> None:
  for ours, name in theirs.items():
    if name not in known:
      raise UserError(
        f"{where}: no column {name!r} (columns.{ours}); it has {', '.join(map(repr, known[:20]))}"
      )
    if list(known).count(name) > 1:
      raise UserError(f"{where}: {list(known).count(name)} columns are called {name!r}; rename one")


def _of_lines(
  path: Path, layout: Layout, theirs: Mapping[str, str], bad: compressed_lines.BadLines
) -> Iterator[tuple[int, dict[str, Any]]]:
  lines, before = _Lines(path, layout, bad), bad.count
  read = csv.reader(lines, strict=True, **lines.options)
  header = list(layout.header) or next(_of(read, lines), None)
  if bad.count > before:
    raise UserError(f"{bad.quoted[-1]}; expected a first line that names the columns")
  if header is None:
    raise UserError(f"{path}: is empty; expected a first line that names the columns")
  _check_columns(path, theirs, header)
  places = {ours: header.index(name) for ours, name in theirs.items()}
  for row in _of(read, lines):
    if len(row) != len(header):
      bad.add(path, lines.number, f"{len(row)} fields; expected {len(header)}")
      continue
    yield lines.number, {ours: row[place] for ours, place in places.items()}


def _of(read: Iterator[list[str]], lines: "_Lines") -> Iterator[list[str]]:
  """The reader's rows, those that it refuses left to `bad`."""
  while True:
    lines.begins = 0
    try:
      yield next(read)
    except StopIteration:
      return
    except csv.Error as error:
      for number in range(lines.begins, lines.number + 1):  # a quote left open takes many
        lines.bad.add(lines.path, number, f"{error}, in the row that begins on line {lines.begins}")


class _Lines:
  """Lines of a file as text for csv.reader; `number` is that of the last one given, `begins` that
  of the first one since it was set to 0."""

  def __init__(self, path: Path, layout: Layout, bad: compressed_lines.BadLines):
    self.path, self.bad, self.number, self.begins = path, bad, 0, 0
    self._lines, self._fallback = compressed_lines.read_lines(path), layout.fallback
    tabs = ".tsv" in [suffix.lower() for suffix in path.suffixes]
    delimiter = layout.delimiter.replace("\\t", "\t") or ("\t" if tabs else ",")
    self._long, self.options = None, {"delimiter": delimiter}
    if len(delimiter) > 1:  # "::" of MovieLens; csv takes one character
      self._long, self.options["delimiter"] = delimiter, "\x1f"
    if not layout.quotes:
      self.options["quoting"] = csv.QUOTE_NONE

  def __iter__(self) -> "_Lines":
    return self

  def __next__(self) -> str:
    while True:
      self.number, line = next(self._lines)
      try:
        text = line.decode("utf-8-sig")
      except UnicodeDecodeError as error:
        if not self._fallback:
          self.bad.add(self.path, self.number, f"not UTF-8 ({error})")
          continue
        text = line.decode(self._fallback)
      self.begins = self.begins or self.number
      return (text.replace(self._long, "\x1f") if self._long else text) + "\n"
