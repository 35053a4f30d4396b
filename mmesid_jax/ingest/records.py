"""Records of JSON lines, of lines in Python's notation, and of Parquet files: what a struct asks
for, checked, and whatever else they hold left out."""

import ast
import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import compressed_lines

Record = TypeVar("Record", bound=msgspec.Struct)
LONGEST_LITERAL = 2**20  # bytes; Python's parser takes a hundred times as much memory
ROWS = 50_000  # of a Parquet file that are held at once


def read_records(
  path: Path, struct: type[Record], bad: compressed_lines.BadLines
) -> Iterator[tuple[int, Record]]:
  """Number of the line or row, from 1, and its record. Bad ones go to `bad`. Raises UserError for a
  file that cannot be read."""
  if compressed_lines.file_format(path) == compressed_lines.PARQUET:
    yield from _of_rows(path, struct, bad)
    return
  decode = msgspec.json.Decoder(struct).decode
  for number, line in compressed_lines.read_lines(path):
    try:
      record = decode(line.removeprefix(codecs.BOM_UTF8))
    except msgspec.ValidationError as error:
      bad.add(path, number, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
      try:
        record = msgspec.convert(_literal(line), struct)
      except msgspec.ValidationError as other:
        bad.add(path, number, other)
      except ValueError:
        bad.add(path, number, f"{error}: {line[:60]!r}")
      else:
        yield number, record
    else:
      yield number, record


def _literal(line: bytes) -> Any:
  """The value of a line in Python's notation, as the metadata of 2014 is written: constants only,
  nothing is ever evaluated. Raises ValueError for anything else."""
  if not line.lstrip().startswith(b"{") or len(line) > LONGEST_LITERAL:
    raise ValueError
  try:
    return ast.literal_eval(line.decode().strip())
  except (SyntaxError, MemoryError, RecursionError, TypeError) as error:
    raise ValueError from error


def _of_rows(
  path: Path, struct: type[Record], bad: compressed_lines.BadLines
) -> Iterator[tuple[int, Record]]:
  names = [field.encode_name for field in msgspec.structs.fields(struct)]
  required = [f.encode_name for f in msgspec.structs.fields(struct) if f.required]
  for number, row in read_parquet_rows(path, names, required):
    try:
      yield number, msgspec.convert(row, struct)
    except msgspec.ValidationError as error:
      bad.add(path, number, error)


def read_parquet_rows(
  path: Path, names: list[str], required: list[str]
) -> Iterator[tuple[int, dict]]:
  """Number, from 1, and values of every row of a Parquet file, of the columns `names` that it has.
  Raises UserError where it lacks one of `required`, or cannot be read."""
  import polars as pl

  try:
    lazy = pl.scan_parquet(path, glob=False)
    columns = lazy.collect_schema().names()
    if missing := [name for name in required if name not in columns]:
      raise UserError(
        f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, columns[:20]))}"
      )
    number = 0
    chosen = lazy.select([name for name in dict.fromkeys(names) if name in columns])
    for batch in chosen.collect_batches(chunk_size=ROWS, maintain_order=True):
      for row in batch.iter_rows(named=True):
        number += 1
        yield number, row
  except (pl.exceptions.PolarsError, OSError) as error:
    raise UserError(f"{path}: not a readable Parquet file ({error})") from None
