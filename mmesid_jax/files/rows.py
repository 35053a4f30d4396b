"""Writes tables for other programs, Parquet, JSON lines or CSV, by the name of the file.

A table maps column names to lists with one value for each row. JSON lines hold one object for each
row, Parquet the same names with their types. CSV begins with the names; it cannot hold lists, and
an empty field is a text that is None. Parquet needs polars, the others do not.
"""

import csv
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mmesid_jax.errors import UserError, disk_fault
from mmesid_jax.files.atomic import atomic_file

PARQUET, JSON_LINES, CSV = ".parquet", ".jsonl", ".csv"
ROW_GROUP = 65_536  # rows that Parquet keeps together, also across the parts of a joined file

# Type of a column -> polars' name of it. Texts, and texts in a list, may be None.
TYPES = {
  int: ("Int64", None),
  float: ("Float32", None),
  str: ("String", None),
  list[int]: ("List", "Int32"),
  list[float]: ("List", "Float32"),
  list[str]: ("List", "String"),
}

Schema = Mapping[str, Any]  # name -> one of TYPES
Columns = Mapping[str, list]  # name -> a value for each row, of Python's own types


def check_rows_file(path: Path, formats: Sequence[str] = (PARQUET, JSON_LINES)) -> None:
  """Raises UserError for a name of none of the formats, a folder, and Parquet without polars."""
  if path.suffix not in formats:
    raise UserError(f"--output={path}: expected a name that ends in {' or '.join(formats)}")
  if path.is_dir():
    raise UserError(f"--output={path}: is a folder; expected the name of a file")
  if path.suffix == PARQUET:
    _polars(path)


def write_rows(path: Path, schema: Schema, columns: Columns) -> None:
  """Writes the schema's columns, in its order, to a file that appears whole.

  Raises UserError for a text that is not Unicode, and for what the disk refuses.
  """
  columns = {name: columns[name] for name in schema}
  try:
    with atomic_file(path) as temporary:
      if path.suffix == PARQUET:
        pl = _polars(path)
        types = {name: _polars_type(pl, kind) for name, kind in schema.items()}
        pl.DataFrame(columns, types).write_parquet(temporary, row_group_size=ROW_GROUP)
      elif path.suffix == CSV:
        with temporary.open("w", encoding="utf-8", newline="") as file:
          # texts in quotes: else a lone \r would end a line
          writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
          writer.writerow(columns)
          writer.writerows(zip(*columns.values(), strict=True))
      else:
        with temporary.open("wb") as file:
          file.writelines(_lines(columns))
  except UnicodeEncodeError as error:
    raise UserError(f"{path}: {error.object!r} is no Unicode text ({error.reason})") from error


def join_row_files(parts: Sequence[Path], path: Path) -> None:
  """Writes the rows of all parts, in order, to one file, in bounded memory.

  The same parts give the same bytes. Raises UserError for a part that is not whole.
  """
  with atomic_file(path) as temporary:
    if path.suffix == PARQUET:
      pl = _polars(path)
      try:
        pl.scan_parquet(parts, glob=False).sink_parquet(temporary, row_group_size=ROW_GROUP)
      except pl.exceptions.PolarsError as error:
        if disk_fault(error):
          raise
        raise UserError(f"{parts[0].parent}: a part is not as it was written ({error})") from error
    else:
      with temporary.open("wb") as joined:
        for n, part in enumerate(parts):
          with part.open("rb") as file:
            if path.suffix == CSV and n:
              file.readline()  # the names, once
            shutil.copyfileobj(file, joined, 1 << 20)


def _lines(columns: Columns) -> Iterator[bytes]:
  for row in zip(*columns.values(), strict=True):
    yield msgspec.json.encode(dict(zip(columns, row, strict=True))) + b"\n"


def _polars_type(pl, kind):
  name, inner = TYPES[kind]
  return getattr(pl, name)(getattr(pl, inner)) if inner else getattr(pl, name)


def _polars(path: str | os.PathLike):
  try:
    import polars
  except ImportError:
    raise UserError(
      f"--output={path}: Parquet needs polars, which is not installed: pip install polars, or "
      f"choose a name that ends in {JSON_LINES}"
    ) from None
  return polars
