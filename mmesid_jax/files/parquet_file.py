"""Reads Parquet files as frames of polars; a file that is damaged ends in one line.

pyarrow decodes them: polars' own reader aborts the process on some damaged files.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars
import pyarrow
import pyarrow.parquet

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import check_regular_file


def read_schema(path: Path) -> dict[str, polars.DataType]:
  """The types of the columns, by name. Raises UserError."""
  with explain_errors(path):
    check_regular_file(path)
    schema = _plain_schema(pyarrow.parquet.read_schema(path))
    return dict(polars.from_arrow(schema.empty_table()).schema)


def read_batches(path: Path, columns: Sequence[str], rows: int) -> Iterator[polars.DataFrame]:
  """Yields these columns in frames of at most `rows` rows, in order. Raises UserError."""
  with explain_errors(path):
    check_regular_file(path)
    file = pyarrow.parquet.ParquetFile(path)
    batches = file.iter_batches(rows, columns=list(columns))
  with contextlib.closing(file):
    while True:
      with explain_errors(path):
        if (batch := next(batches, None)) is None:
          return
        batch.validate(full=True)
        table = pyarrow.Table.from_arrays(batch.columns, schema=_plain_schema(batch.schema))
        frame = polars.from_arrow(table).select(list(columns))
      yield frame


def _plain_schema(schema: pyarrow.Schema) -> pyarrow.Schema:
  """The columns' names and types alone; polars panics where other texts are not Unicode.

  Raises ValueError for a name that is not.
  """
  str(schema)  # decodes all names
  return pyarrow.schema([pyarrow.field(field.name, field.type) for field in schema])


@contextlib.contextmanager
def explain_errors(path: Path) -> Iterator[None]:
  """Raises UserError for what pyarrow and polars raise in the block about a damaged file."""
  try:
    yield
  except (
    *(pyarrow.ArrowException, polars.exceptions.PolarsError, polars.exceptions.PanicException),
    *(OSError, ValueError, MemoryError, OverflowError, NotImplementedError, TypeError),
  ) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path}: not a readable Parquet file ({reason})") from None
