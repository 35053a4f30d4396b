"""Feature tables from .npy or .safetensors files: one row per item, row 0 for padding."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmesid_jax.data.folder.problems import Mistake, raise_first
from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import read_npy
from mmesid_jax.files.tensor_file import TensorFile

CHUNK_BYTES = 32 * 2**20  # size of the part of a table that is checked at once
KEPT_DTYPES = ("float16", "float32", "bfloat16")  # other types are converted to float32


def read_features(
  path: str | os.PathLike, num_items: int, *, width: int | None = None
) -> np.ndarray:
  """Reads a table whose row i belongs to item i, float32 [I, V], row 0 set to zero.

  Raises UserError as `open_features` does.
  """
  x_IV = np.array(open_features(path, num_items, width=width), np.float32)  # a copy
  x_IV[0] = 0
  return x_IV


def open_features(
  path: str | os.PathLike, num_items: int, *, width: int | None = None
) -> np.ndarray:
  """Opens a table without reading it into memory: [I, V], row 0 as the file has it.

  The file is .npy, or .safetensors with one tensor, of any float or integer type (bfloat16 too). A
  .npy of float16 or float32 is a memory map; .safetensors and other types are read into memory.

  Raises UserError for a file that is missing or of another kind; for a table that is not 2-d, does
  not have `num_items` + 1 rows, has a width other than `width` (when given), contains NaN or
  infinity, or has the same row for all items. The values are checked in chunks.
  """
  table = read_table(path)
  raise_first(path, table_mistakes(table, num_items, width))
  return _floats(table)


def feature_width(path: str | os.PathLike, num_items: int) -> int:
  """Returns V of a file's table [I, V]; only the header is read.

  Raises UserError for a file that is missing, of another kind or of another shape.
  """
  shape = _table_shape(Path(path))
  raise_first(path, _shape_mistakes(shape, num_items))
  return shape[1]


def table_mistakes(
  table: np.ndarray, num_items: int, width: int | None = None
) -> Iterator[Mistake]:
  """Yields every reason for which `open_features` refuses a table."""
  mistakes = list(_shape_mistakes(table.shape, num_items))
  if not mistakes and width is not None and table.shape[1] != width:
    mistakes.append(Mistake("width", f"rows are {table.shape[1]} wide; expected {width}"))
  mistakes += _type_mistakes(table)
  yield from mistakes
  if table.ndim == 2 and table.size and not any(m.kind == "type" for m in mistakes):
    yield from _value_mistakes(table)


def _shape_mistakes(shape: tuple[int, ...], num_items: int) -> Iterator[Mistake]:
  if len(shape) != 2 or not shape[1]:
    yield Mistake(
      "shape", f"a table of shape {list(shape)}; expected [items + 1, width], width at least 1"
    )
  elif shape[0] != num_items + 1:
    text = (
      f"{shape[0]} rows; expected {num_items + 1}, one for each of the {num_items} items after a "
      "row 0 for padding"
    )
    yield Mistake("rows", text)


def _type_mistakes(table: np.ndarray) -> Iterator[Mistake]:
  if table.dtype.kind in "OSUMmVc" and table.dtype.name != "bfloat16":
    yield Mistake("type", f"holds values of type {table.dtype}; expected numbers")


def _value_mistakes(table: np.ndarray) -> Iterator[Mistake]:
  bad, first_bad, constant = 0, 0, len(table) > 2  # one item alone may have any row
  for start, x in row_chunks(table):
    bad_rows = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad_rows) and not bad:
      first_bad = start + bad_rows[0]
    bad += len(bad_rows)
    constant = constant and bool((x == _float32(table[1])).all())
  if bad:
    yield Mistake("values", f"holds NaN or infinity ({bad} such rows)", row=int(first_bad))
  if constant:
    text = f"all {len(table) - 1} items have the same row; expected vectors that tell them apart"
    yield Mistake("constant", text)


def _floats(table: np.ndarray) -> np.ndarray:
  """Converts the table to float32 unless its dtype is kept."""
  return table if table.dtype.name in KEPT_DTYPES and table.dtype.isnative else _float32(table)


def _float32(x: np.ndarray) -> np.ndarray:
  """Copies x as float32."""
  with np.errstate(over="ignore"):  # numbers too large for float32 become infinity
    return x.astype(np.float32)


def row_chunks(table: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (number of the first row, float32 rows), chunk by chunk, from row 1 on."""
  rows = max(CHUNK_BYTES // (4 * table.shape[1]), 1)
  for start in range(1, len(table), rows):
    yield start, _float32(table[start : start + rows])


def read_new_features(path: str | os.PathLike, *, width: int) -> np.ndarray:
  """Reads a table of new items, float32 [E, V]: one row per item, no row for padding.

  Raises UserError as `new_features` does; for another kind of file; and for a first row of zeros,
  which is the padding row of a training table and would shift every item by one.
  """
  x_EV = new_features(read_table(path), path, width=width)
  if not x_EV[0].any():
    raise UserError(f"{path}: row 0 is all zeros; new items have no padding row, leave it out")
  return x_EV


def new_features(table: np.ndarray, source: str | os.PathLike, *, width: int) -> np.ndarray:
  """Checks a table of E >= 1 new items and copies it as float32 [E, V].

  `source` is the name for error messages. Raises UserError for another shape, NaN or infinity.
  """
  if table.ndim != 2 or not len(table):
    raise UserError(
      f"{source}: a table of shape {list(table.shape)}; expected [new items, {width}], one row "
      "per item and none for padding"
    )
  if table.shape[1] != width:
    raise UserError(f"{source}: rows are {table.shape[1]} wide; expected {width}")
  raise_first(source, _type_mistakes(table))
  x_EV = _float32(table)  # a copy: the file stays as it is
  bad = np.flatnonzero(~np.isfinite(x_EV).all(axis=1))
  if len(bad):
    raise UserError(f"{source}: row {bad[0]} holds NaN or infinity ({len(bad)} such rows)")
  return x_EV


def read_table(path: str | os.PathLike) -> np.ndarray:
  """Reads a table of any shape and type; a .npy is a memory map.

  Raises UserError for a file that is missing or of another kind.
  """
  readers = {".npy": read_npy, ".safetensors": _read_safetensors}
  return _reader_for(Path(path), readers)(Path(path))


def _table_shape(path: Path) -> tuple[int, ...]:
  readers = {".npy": lambda path: read_npy(path).shape, ".safetensors": _safetensors_shape}
  return tuple(_reader_for(path, readers)(path))


def _reader_for(path: Path, readers):
  if not path.exists():
    raise UserError(f"{path}: no such file; expected a feature table, .npy or .safetensors")
  if path.suffix not in readers:
    raise UserError(f"{path}: unknown kind of feature table; expected .npy or .safetensors")
  return readers[path.suffix]


def _read_safetensors(path: Path) -> np.ndarray:
  file, name = _only_tensor(path)
  return file.read(name)


def _safetensors_shape(path: Path) -> tuple[int, ...]:
  file, name = _only_tensor(path)
  return file.shape(name)


def _only_tensor(path: Path) -> tuple[TensorFile, str]:
  file = TensorFile(path)
  if len(names := file.keys()) == 1:
    return file, names[0]
  raise UserError(f"{path}: {len(names)} tensors ({', '.join(names[:5])}); expected exactly one")
