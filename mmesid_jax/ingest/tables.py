"""Reads tables with one row per event or item.

A table is CSV, JSON lines, Parquet, or a data frame in memory. Its columns, or the fields of its
JSON objects, are found by name.
"""

import csv
import dataclasses
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import compressed_lines, events, records
from mmesid_jax.ingest.catalogue import Item
from mmesid_jax.ingest.settings import QUOTING

# A file; or a data frame of pandas or Polars, or lists by name.
Source = Path | Mapping[str, Iterable]
EVENT = ("user", "item", "time", "rating")
ITEM = ("item", "title", "brand", "categories", "description", "image")
KEYS = ("user", "item")
REQUIRED = ("user", "item", "time")  # in every line of JSON; the others may be missing
NO_GENRES = "(no genres listed)"  # in MovieLens


@dataclasses.dataclass(frozen=True)
class TableLayout:
  """The names of a table's columns, and the format of a CSV file."""

  columns: Mapping[str, str]  # our name -> the table's; "" or no entry = the table has none
  delimiter: str = ""  # "" = a comma, or a tab in .tsv files
  header: tuple[str, ...] = ()  # names of the columns; () = the first line has them
  encoding: str = ""  # of a text file without a byte-order mark; "" = UTF-8
  fallback: str = ""  # encoding of lines that are not UTF-8; "" = such lines are bad
  quoting: str = ""  # a key of QUOTING; "" = "none" if a tab separates fields, else "double"
  lists: str = "|"  # separator of the categories of an item
  flags: tuple[str, ...] = ()  # columns that are named after a category, "1" for its items


def event_rows(
  source: Source, layout: TableLayout, bad: compressed_lines.BadLines
) -> Iterator[events.Row]:
  """Yields user key, item key, time and rating of every row; bad rows go to `bad`.

  Times are as `events.parse_time` has them, None without a column of times. Raises UserError for a
  file that cannot be read or lacks a column.
  """
  has_times = bool(layout.columns.get("time"))
  for number, row in _rows(source, layout, EVENT, bad):
    try:
      yield (
        events.parse_key(row["user"]),
        events.parse_key(row["item"]),
        events.parse_time(row["time"]) if has_times else None,
        events.parse_rating(row.get("rating")),
      )
    except ValueError as error:
      bad.add(_source_name(source), number, error)


def item_rows(
  source: Source, layout: TableLayout, bad: compressed_lines.BadLines
) -> Iterator[Item]:
  """Yields the item of every row; bad rows go to `bad`. Raises UserError as `event_rows` does."""
  for number, row in _rows(source, layout, ITEM, bad):
    try:
      yield Item(
        key=events.parse_key(row["item"]),
        title=_to_text(row, "title"),
        brand=_to_text(row, "brand"),
        categories=_to_texts(row.get("categories"), layout.lists)
        or [flag for flag in layout.flags if row[flag] == "1"]
        or None,
        description=_to_text(row, "description"),
        images=_to_texts(row.get("image"), None),
      )
    except ValueError as error:
      bad.add(_source_name(source), number, error)


def _to_text(row: Mapping[str, Any], name: str) -> str | None:
  value = row.get(name)
  if _is_missing(value):
    return None
  if not _is_text_or_number(value):
    raise ValueError(f"{name} is a {type(value).__name__}; expected a text")
  return str(value).strip() or None


def _to_texts(value: Any, separator: str | None) -> list[str] | None:
  """Converts a text, a list of texts, or a list of paths of categories, to a list of texts.

  A text is divided at `separator`; of a list of paths the first counts. Returns None for nothing.
  Raises ValueError for anything else.
  """
  if _is_missing(value):
    return None
  if isinstance(value, str | int | float):
    value = str(value).split(separator) if separator else [value]
  elif isinstance(value, Mapping) or not isinstance(value, Iterable):
    raise ValueError(f"a {type(value).__name__} where a text or a list of them is expected")
  parts = _to_list(value)
  if parts and isinstance(parts[0], list | tuple):
    parts = parts[0]
  parts = [part for part in parts if not _is_missing(part)]
  if other := [part for part in parts if not _is_text_or_number(part)]:
    raise ValueError(f"a {type(other[0]).__name__} where a text is expected")
  texts = (str(part).strip() for part in parts)
  return [text for text in texts if text and text != NO_GENRES] or None


def _is_text_or_number(value: Any) -> bool:
  return isinstance(value, str | numbers.Real) and not isinstance(value, bool)


def _is_missing(value: Any) -> bool:
  """Whether a value is missing: None, or NaN, NaT or NA of a data frame."""
  # NaN, NaT and NA are not equal to themselves
  return value is None or type(value).__name__ == "NAType" or (value != value) is True


def _source_name(source: Source) -> str:
  return str(source) if isinstance(source, Path) else "row"


def _rows(
  source: Source, layout: TableLayout, wanted: tuple[str, ...], bad: compressed_lines.BadLines
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the number of every line or row, from 1, and its values by our names."""
  theirs = {ours: layout.columns[ours] for ours in wanted if layout.columns.get(ours)}
  theirs |= {flag: flag for flag in layout.flags}
  if not isinstance(source, Path):
    return _frame_rows(source, theirs)
  if compressed_lines.file_format(source) == compressed_lines.PARQUET:
    return _parquet_rows(source, theirs)
  if records.is_json_lines(source, layout.encoding):
    return _json_rows(source, layout.encoding, theirs, bad)
  return _csv_rows(source, layout, theirs, bad)


def _parquet_rows(path: Path, theirs: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
  names = [*theirs.values()]
  single = [ours for ours in KEYS if records.is_single(path, theirs.get(ours))]
  for number, row in records.read_parquet_rows(path, names, names):
    values = {ours: row[name] for ours, name in theirs.items()}
    for ours in single:
      values[ours] = _to_single(values[ours])
    yield number, values


def _json_rows(
  path: Path, encoding: str, theirs: Mapping[str, str], bad: compressed_lines.BadLines
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the rows of a file of JSON lines; a line without a required field is bad.

  Raises UserError when the first line lacks a required field and no bad lines are allowed: then the
  name of the column is wrong. Raises UserError for any field that is in no line.
  """
  required = {ours: name for ours, name in theirs.items() if ours in REQUIRED}
  first_number, present = records.first_field_names(path, encoding)
  if present and not bad.allowed:
    _check_columns(f"{path}:{first_number}", required, present, kind="field")
  names, seen = [*dict.fromkeys(theirs.values())], set()
  for number, fields in records.read_json_fields(path, names, bad, encoding):
    seen |= fields.keys()
    missing = [ours for ours, name in required.items() if name not in fields]
    if missing:
      bad.add(path, number, f"no field {theirs[missing[0]]!r} (columns.{missing[0]})")
      continue
    yield number, {ours: fields.get(name) for ours, name in theirs.items()}
  if seen:
    known = [*present, *sorted(seen - set(present))]
    _check_columns(path, theirs, known, kind="field")


def _frame_rows(
  frame: Mapping[str, Iterable], theirs: Mapping[str, str]
) -> Iterator[tuple[int, dict[str, Any]]]:
  _check_columns("the data frame", theirs, [*getattr(frame, "columns", frame)])
  columns = [frame[name] for name in theirs.values()]
  single = [
    ours in KEYS and str(getattr(column, "dtype", "")).lower() == "float32"
    for ours, column in zip(theirs, columns, strict=True)
  ]
  lists = [
    [None if _is_missing(x) else x for x in _column_values(name, column)]
    for name, column in zip(theirs.values(), columns, strict=True)
  ]
  lists = [[*map(_to_single, x)] if of else x for x, of in zip(lists, single, strict=True)]
  if len({len(column) for column in lists}) > 1:
    raise UserError("the columns are not of one length")
  for number, values in enumerate(zip(*lists, strict=True), start=1):
    yield number, dict(zip(theirs, values, strict=True))


def _to_single(value: float | None) -> np.float32 | None:
  """The number with its own precision again, which `events.parse_key` asks for."""
  return None if value is None else np.float32(value)


def _column_values(name: str, column: object) -> list:
  """Returns the values of a data frame's column. Raises UserError for a single value."""
  whole = isinstance(column, str | bytes | Mapping) or not isinstance(column, Iterable)
  values = None if whole else _to_list(column)
  if not isinstance(values, list):  # an array without axes is iterable, and holds one value
    raise UserError(
      f"the column {name!r} is {repr(column)[:40]}; expected a list with a value a row"
    )
  return values


def _to_list(column: Iterable) -> list:
  """Converts a column of any library to a list of Python values."""
  for name in ("to_list", "tolist"):
    if convert := getattr(column, name, None):
      return convert()
  return list(column)


def _check_columns(
  where: object, theirs: Mapping[str, str], known: Sequence[str], kind: str = "column"
) -> None:
  """Raises UserError for a column that is missing or not unique."""
  for ours, name in theirs.items():
    if name not in known:
      raise UserError(
        f"{where}: no {kind} {name!r} (columns.{ours}); it has {', '.join(map(repr, known[:20]))}"
      )
    if list(known).count(name) > 1:
      raise UserError(f"{where}: {list(known).count(name)} columns are called {name!r}; rename one")


def _csv_rows(
  path: Path, layout: TableLayout, theirs: Mapping[str, str], bad: compressed_lines.BadLines
) -> Iterator[tuple[int, dict[str, Any]]]:
  lines, bad_before = _Lines(path, layout, bad), bad.count
  reader = csv.reader(lines, strict=True, **lines.options)
  header = list(layout.header) or next(_valid_rows(reader, lines), None)
  if bad.count > bad_before:
    raise UserError(f"{bad.quoted[-1]}; expected a first line that names the columns")
  if header is None:
    raise UserError(f"{path}: is empty; expected a first line that names the columns")
  _check_columns(path, theirs, header)
  places = {ours: header.index(name) for ours, name in theirs.items()}
  for place, row in enumerate(_valid_rows(reader, lines)):
    if place == 0 and [name.strip().lower() for name in row] == [n.lower() for n in layout.header]:
      raise UserError(
        f"{path}:{lines.number}: holds the names of the columns; leave --config.header out, with "
        "--config.source=table"
      )
    if len(row) != len(header):
      bad.add(path, lines.number, f"{len(row)} fields; expected {len(header)}")
      continue
    yield lines.number, {ours: row[place] for ours, place in places.items()}


def _valid_rows(reader: Iterator[list[str]], lines: "_Lines") -> Iterator[list[str]]:
  """Yields the rows of the reader; the lines of rows that it refuses go to `bad`."""
  while True:
    lines.begins = 0
    try:
      row = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      reason = f"{error}, in the row that begins on line {lines.begins} (see --config.quoting)"
      for number in range(lines.begins, lines.number + 1):  # many if a quote is left open
        lines.bad.add(lines.path, number, reason)
      continue
    if lines.number > lines.begins:
      lines.bad.note_long_row(lines.path, lines.begins, lines.number)
    yield row


class _Lines:
  """Lines of a file as text for csv.reader.

  `number` is that of the last line, `begins` that of the first line since it was set to 0.
  """

  def __init__(self, path: Path, layout: TableLayout, bad: compressed_lines.BadLines):
    self.path, self.bad, self.number, self.begins = path, bad, 0, 0
    self._lines = compressed_lines.read_lines(path, layout.encoding)
    self._encoding, self._fallback = layout.encoding or "UTF-8", layout.fallback
    tabs = ".tsv" in [suffix.lower() for suffix in path.suffixes]
    delimiter = layout.delimiter.replace("\\t", "\t") or ("\t" if tabs else ",")
    self._long, self.options = None, {"delimiter": delimiter}
    if len(delimiter) > 1:  # "::" of MovieLens; csv allows one character only
      self._long, self.options["delimiter"] = delimiter, "\x1f"
    quoting = layout.quoting or ("none" if delimiter == "\t" else "double")
    self.options |= QUOTING[quoting]

  def __iter__(self) -> "_Lines":
    return self

  def __next__(self) -> str:
    while True:
      self.number, line = next(self._lines)
      try:
        text = line.decode("utf-8-sig")
      except UnicodeDecodeError as error:
        if not self._fallback:
          reason = f"not {self._encoding} (byte {line[error.start]:#x} at {error.start})"
          self.bad.add(
            self.path, self.number, f"{reason}; name it by --config.encoding, as latin-1"
          )
          continue
        text = line.decode(self._fallback)
      self.begins = self.begins or self.number
      return (text.replace(self._long, "\x1f") if self._long else text) + "\n"
