"""Reads vectors from Parquet: a column of keys, and a column of lists or many of numbers."""

import fnmatch
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars

from mmesid_jax.errors import UserError
from mmesid_jax.features.keyed_vectors import CHUNK_BYTES, KeyedVectors
from mmesid_jax.files import parquet_file

KEYS_AT_ONCE = 2**16
TEXT_TYPES = (polars.String, polars.Categorical, polars.Enum)


def read_parquet_vectors(
  path: Path, *, key_column: str | None = None, vector_columns: list[str] | None = None
) -> KeyedVectors:
  """Opens a Parquet file, whose vectors are then read in chunks.

  Args:
    path: the file.
    key_column: the column of keys, text or integers. None: the only column of text, or if there is
      none the only one of integers.
    vector_columns: one column of lists, or columns of numbers, in this order; patterns such as
      `text_*` too, which take columns in the order of the file. None: the only column of lists of
      numbers, or if there is none all columns of floats, in the order of the file.

  Raises UserError for a file that is missing or damaged, a missing key, and columns that do not
  exist, are ambiguous or hold something else. The chunks raise it for vectors that are not as wide
  as the first and for missing numbers.
  """
  if not path.exists():
    raise UserError(f"{path}: no such file")
  schema = parquet_file.read_schema(path)
  key = _key_column(path, schema, key_column)
  columns = _vector_columns(path, schema, key, vector_columns)
  texts = [polars.Series(key, [], polars.String)]
  for frame in parquet_file.read_batches(path, [key], KEYS_AT_ONCE):
    with parquet_file.explain_errors(path):
      texts.append(frame[key].cast(polars.String))
  keys = polars.concat(texts)
  first = next(parquet_file.read_batches(path, columns, 1), None)
  if first is None or not len(keys):
    raise UserError(f"{path}: holds no rows")
  if keys.null_count():
    row = int(keys.is_null().arg_max())
    raise UserError(f"{path}: row {row} has no key in the column {key!r}")
  nested = schema[columns[0]].is_nested()
  width = _as_lists(first[columns[0]]).list.len()[0] if nested else len(columns)
  if not width:
    raise UserError(f"{path}: the vector of row 0 is empty (column {columns[0]!r})")

  def chunks() -> Iterator[np.ndarray]:
    rows, start = max(CHUNK_BYTES // (4 * width), 1), 0
    for frame in parquet_file.read_batches(path, columns, rows):
      if nested:
        yield _stack_lists(path, frame[columns[0]], width, start)
      else:
        yield frame.to_numpy()  # a missing number becomes NaN
      start += len(frame)

  return KeyedVectors(path, keys.to_list(), width, chunks)


def _stack_lists(path: Path, column, width: int, start: int) -> np.ndarray:
  """Returns [rows, width] from a column of lists, which begins at row `start` of the file."""
  where = f"{path}: column {column.name!r}, row"
  lists = _as_lists(column)
  widths = lists.list.len().fill_null(0)
  if (widths != width).any():
    row = int((widths != width).arg_max())
    raise UserError(f"{where} {start + row}: {widths[row]} numbers; row 0 has {width}")
  flat = lists.explode()
  if flat.null_count():
    row = int(flat.is_null().arg_max()) // width
    raise UserError(f"{where} {start + row}: a number is missing")
  return flat.to_numpy().reshape(len(lists), width)


def _as_lists(column: polars.Series) -> polars.Series:
  """Returns a column of lists or arrays (lists of one length) as lists."""
  return column.cast(polars.List(column.dtype.inner))


def _key_column(path: Path, schema, named: str | None) -> str:
  """Returns the name of the column of keys. Raises UserError if it is missing or ambiguous."""
  text = [name for name, kind in schema.items() if kind in TEXT_TYPES]
  integers = [name for name, kind in schema.items() if kind.is_integer()]
  if named is None:
    candidates = text or integers
    if len(candidates) == 1:
      return candidates[0]
    raise UserError(
      f"{path}: which column holds the keys? Say --key_column=NAME; columns of text or integers: "
      f"{_join_names(text + integers)}"
    )
  if named not in schema:
    raise UserError(f"--key_column={named}: not in {path}, whose columns are {_join_names(schema)}")
  if named not in text + integers:
    raise UserError(f"--key_column={named}: holds {schema[named]}; expected text or integers")
  return named


def _vector_columns(path: Path, schema, key: str, named: list[str] | None) -> list[str]:
  """Returns the names of one column of lists of numbers, or of one or more of numbers."""
  lists = [name for name, kind in schema.items() if _is_list_of_numbers(kind)]
  if named is None:
    columns = lists or [name for name, kind in schema.items() if kind.is_float()]
    if not columns or len(lists) > 1:
      raise UserError(
        f"{path}: which columns hold the vectors? Say --vector_columns=NAME, or several names or "
        f"patterns; its columns are {_join_names(schema)}"
      )
    return columns
  if twice := [name for place, name in enumerate(named) if name in named[:place]]:
    raise UserError(f"--vector_columns={','.join(named)}: {twice[0]} is named twice; name it once")
  others = [name for name in schema if name != key]
  columns = []
  for pattern in named:
    if not (found := [name for name in others if fnmatch.fnmatchcase(name, pattern)]):
      raise UserError(f"--vector_columns={pattern}: not in {path}, which has {_join_names(others)}")
    columns += [name for name in found if name not in columns]
  wrong = [name for name in columns if not _is_number(schema[name])]
  if wrong and not (wrong == columns and len(columns) == 1 and columns[0] in lists):
    raise UserError(
      f"--vector_columns: {wrong[0]!r} holds {schema[wrong[0]]}; expected one column of lists of "
      "numbers, or columns of numbers"
    )
  return columns


def _is_number(kind) -> bool:
  return kind.is_integer() or kind.is_float()


def _is_list_of_numbers(kind) -> bool:
  return isinstance(kind, polars.List | polars.Array) and _is_number(kind.inner)


def _join_names(names) -> str:
  """Returns the first names, for a message."""
  names = list(names)
  more = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return (", ".join(names[:8]) or "none") + more
