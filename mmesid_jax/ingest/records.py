"""Reads records from JSON lines, lines in Python's notation, and Parquet files.

Only the fields that are asked for are decoded and checked; all others are skipped.
"""

import ast
import codecs
import contextlib
import datetime
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import parse_json
from mmesid_jax.ingest import compressed_lines

Record = TypeVar("Record", bound=msgspec.Struct)
LONGEST_LITERAL = 2**20  # bytes; Python's parser takes a hundred times as much memory
EPOCH = datetime.date(1970, 1, 1)
ROWS = 50_000  # rows of a Parquet file that are held in memory at once

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".dat", ".txt")
COMPRESSION_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")


def read_records(
  path: Path, struct: type[Record], bad: compressed_lines.BadLines, encoding: str = ""
) -> Iterator[tuple[int, Record]]:
  """Yields the number of every line or row, from 1, and its record; bad lines go to `bad`.

  The file holds JSON lines, lines in Python's notation, or Parquet. encoding: of lines, as in
  `compressed_lines.read_lines`. Raises UserError for a file
  that cannot be read.
  """
  if compressed_lines.file_format(path) == compressed_lines.PARQUET:
    yield from _read_parquet_records(path, struct, bad)
    return
  decode = msgspec.json.Decoder(struct).decode
  for number, line in compressed_lines.read_lines(path, encoding):
    try:
      record = decode(line.removeprefix(codecs.BOM_UTF8))
    except msgspec.ValidationError as error:
      bad.add(path, number, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
      try:
        record = msgspec.convert(_parse_odd(line), struct)
      except msgspec.ValidationError as literal_error:
        bad.add(path, number, literal_error)
      except ValueError:
        bad.add(path, number, f"{error}: {line[:60]!r}")
      else:
        yield number, record
    else:
      yield number, record


def _parse_odd(line: bytes) -> Any:
  """Parses what msgspec refuses: Python's notation, and JSON with half of a surrogate pair in any
  field, which matters only where the field is read. Raises ValueError for anything else."""
  if b"\\u" in line:
    with contextlib.suppress(ValueError):
      return parse_json(line)
  return _parse_literal(line)


def _parse_literal(line: bytes) -> Any:
  """Parses a line in Python's notation, as in the metadata of 2014, without evaluating anything.

  Only constants are allowed. Raises ValueError for anything else.
  """
  if not line.lstrip().startswith(b"{") or len(line) > LONGEST_LITERAL:
    raise ValueError
  try:
    with warnings.catch_warnings():  # of odd backslashes, with the text as it is
      warnings.simplefilter("ignore")
      return ast.literal_eval(line.decode().strip())
  except (SyntaxError, MemoryError, RecursionError, TypeError) as error:
    raise ValueError from error


def is_json_lines(path: Path, encoding: str = "") -> bool:
  """Whether the file holds JSON lines: by its name, or, if that says nothing, by its first byte."""
  if (suffix := _suffix(path)) in (*JSON_SUFFIXES, *TABLE_SUFFIXES):
    return suffix in JSON_SUFFIXES
  _, line = next(compressed_lines.read_lines(path, encoding), (0, b""))
  return line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def is_csv(path: Path) -> bool:
  """Whether the name of the file is that of comma- or tab-separated values."""
  return _suffix(path) in TABLE_SUFFIXES[:2]


def _suffix(path: Path) -> str:
  """Returns the end of the name, in small letters, without that of a compression."""
  suffixes = [suffix.lower() for suffix in path.suffixes]
  if suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
    suffixes.pop()
  return suffixes[-1] if suffixes else ""


def first_field_names(path: Path, encoding: str = "") -> tuple[int, list[str]]:
  """Returns number and field names of the first line; no names for a line that is no object.

  Raises UserError for a file without lines.
  """
  number, line = next(compressed_lines.read_lines(path, encoding), (0, b""))
  if not number:
    raise UserError(f"{path}: is empty; expected one JSON object per line")
  for parse in (msgspec.json.decode, _parse_odd):
    try:
      value = parse(line.removeprefix(codecs.BOM_UTF8))
      return number, [*map(str, value)] if isinstance(value, dict) else []
    except (ValueError, RecursionError):
      continue
  return number, []


def read_json_fields(
  path: Path, names: Sequence[str], bad: compressed_lines.BadLines, encoding: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the number of every line, from 1, and those of the named fields that it has.

  Lines that are not objects go to `bad`. Raises UserError as `read_records` does.
  """
  fields = [
    (f"field_{i}", Any, msgspec.field(name=name, default=msgspec.UNSET))
    for i, name in enumerate(names)
  ]
  for number, record in read_records(path, msgspec.defstruct("Fields", fields), bad, encoding):
    values = zip(names, msgspec.structs.astuple(record), strict=True)
    yield number, {name: value for name, value in values if value is not msgspec.UNSET}


def _read_parquet_records(
  path: Path, struct: type[Record], bad: compressed_lines.BadLines
) -> Iterator[tuple[int, Record]]:
  names = [field.encode_name for field in msgspec.structs.fields(struct)]
  required = [f.encode_name for f in msgspec.structs.fields(struct) if f.required]
  for number, row in read_parquet_rows(path, names, required):
    try:
      yield number, msgspec.convert(row, struct)
    except msgspec.ValidationError as error:
      bad.add(path, number, error)


def parquet_columns(path: Path) -> list[str]:
  """Returns the names of the columns of a Parquet file. Raises UserError if it cannot be read."""
  import polars as pl

  try:
    return pl.scan_parquet(path, glob=False).collect_schema().names()
  except (pl.exceptions.PolarsError, OSError) as error:
    raise UserError(f"{path}: not a readable Parquet file ({error})") from None


def is_single(path: Path, column: str | None) -> bool:
  """Whether a Parquet file's column holds numbers of 32 bits with a point. Raises UserError."""
  import polars as pl

  from mmesid_jax.files import parquet_file

  return parquet_file.read_schema(path).get(column) == pl.Float32


def read_parquet_rows(
  path: Path, names: list[str], required: list[str]
) -> Iterator[tuple[int, dict]]:
  """Yields the number of every row of a Parquet file, from 1, and its values by column.

  Columns that are in `names` but not in the file are left out. Raises UserError when a column of
  `required` is missing, and for a file that cannot be read.
  """
  from polars import selectors

  from mmesid_jax.files import parquet_file

  columns = [*parquet_file.read_schema(path)]
  if missing := [name for name in required if name not in columns]:
    raise UserError(
      f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, columns[:20]))}"
    )
  number, chosen = 0, [name for name in dict.fromkeys(names) if name in columns]
  for batch in parquet_file.read_batches(path, chosen, ROWS):
    with parquet_file.explain_errors(path):
      # as text, because Python's own dates have no nanoseconds
      texts = selectors.datetime("ns").dt.to_string("iso:strict")
      rows = _without_far_dates(batch).with_columns(texts).rows(named=True)
    for number, row in enumerate(rows, number + 1):  # noqa: B020
      yield number, row


def _without_far_dates(batch: Any) -> Any:
  """The frame with None in the place of dates that Python lacks, before 1 and after 9999."""
  import polars as pl

  first, last = datetime.date.min - EPOCH, datetime.date.max - EPOCH
  columns = []
  for name, kind in batch.schema.items():
    if kind == pl.Date or (isinstance(kind, pl.Datetime) and kind.time_unit != "ns"):
      a_day = 1 if kind == pl.Date else 86_400 * {"ms": 10**3, "us": 10**6}[kind.time_unit]
      # a day less at both ends: a zone of time may not reach past them
      inside = pl.col(name).to_physical().is_between((first.days + 1) * a_day, last.days * a_day)
      columns.append(pl.when(inside).then(pl.col(name)).alias(name))
  return batch.with_columns(columns)
