"""Feature tables: one row an item, row 0 the padding item, from .npy or .safetensors files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

from mmesid_jax.data.folder.problems import Mistake, raise_first
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import read_npy

CHUNK_BYTES = 32 * 2**20  # of a table that is checked at once
AS_THEY_ARE = ("float16", "float32", "bfloat16")  # other types are converted to float32


def read_features(
  path: str | os.PathLike, num_items: int, *, width: int | None = None
) -> np.ndarray:
  """Reads a table whose row i belongs to item i, float32 [I + 1, V], row 0 set to zero.

  Raises UserError as `open_features` does.
  """
  x_IV = np.array(open_features(path, num_items, width=width), np.float32)  # a copy
  x_IV[0] = 0
  return x_IV


def open_features(
  path: str | os.PathLike, num_items: int, *, width: int | None = None
) -> np.ndarray:
  """The same table without reading it into memory: [I + 1, V], row 0 as the file has it.

  .npy, or .safetensors with one tensor; any float or integer type (bfloat16 too). A .npy of float16
  or float32 is a memory map, .safetensors and other types are read. All is checked, in chunks:
  raises UserError for a file that is missing or of another kind, a table that is not 2-d, has other
  than `num_items` + 1 rows, a width other than `width` (when given), holds NaN or infinity, or
  tells no two items apart.
  """
  table = read_table(path)
  raise_first(path, table_mistakes(table, num_items, width))
  return _floats(table)


def feature_width(path: str | os.PathLike, num_items: int) -> int:
  """V of the table [I + 1, V] of a file, by its header. Raises UserError as `open_features` does
  for a file that is missing, of another kind or of another shape."""
  shape = _shape(Path(path))
  raise_first(path, _of_shape(shape, num_items))
  return shape[1]


def table_mistakes(
  table: np.ndarray, num_items: int, width: int | None = None
) -> Iterator[Mistake]:
  """Everything for which `open_features` refuses a table."""
  wrong = list(_of_shape(table.shape, num_items))
  if not wrong and width is not None and table.shape[1] != width:
    wrong.append(Mistake("width", f"rows are {table.shape[1]} wide; expected {width}"))
  wrong += _of_type(table)
  yield from wrong
  if table.ndim == 2 and table.size and not any(m.kind == "type" for m in wrong):
    yield from _of_values(table)


def _of_shape(shape: tuple[int, ...], num_items: int) -> Iterator[Mistake]:
  if len(shape) != 2 or not shape[1]:
    yield Mistake("shape", f"a table of shape {list(shape)}; expected [items + 1, width]")
  elif shape[0] != num_items + 1:
    text = (
      f"{shape[0]} rows; expected {num_items + 1}, one for each of the {num_items} items after a "
      "row 0 for padding"
    )
    yield Mistake("rows", text)


def _of_type(table: np.ndarray) -> Iterator[Mistake]:
  if table.dtype.kind in "OSUMmVc" and table.dtype.name != "bfloat16":
    yield Mistake("type", f"holds values of type {table.dtype}; expected numbers")


def _of_values(table: np.ndarray) -> Iterator[Mistake]:
  bad, first_bad, constant = 0, 0, len(table) > 2  # of a single item nothing is expected
  for start, x in row_chunks(table):
    found = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(found) and not bad:
      first_bad = start + found[0]
    bad += len(found)
    constant = constant and bool((x == _float32(table[1])).all())
  if bad:
    yield Mistake("values", f"holds NaN or infinity ({bad} such rows)", row=int(first_bad))
  if constant:
    text = f"all {len(table) - 1} items have the same row; expected vectors that tell them apart"
    yield Mistake("constant", text)


def _floats(table: np.ndarray) -> np.ndarray:
  """The table, as float32 unless it is of a kind that is read as it is."""
  return table if table.dtype.name in AS_THEY_ARE and table.dtype.isnative else _float32(table)


def _float32(x: np.ndarray) -> np.ndarray:
  """A copy."""
  with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity: no finite number
    return x.astype(np.float32)


def row_chunks(table: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Number of the first row and float32 rows, chunk by chunk from row 1 on."""
  rows = max(CHUNK_BYTES // (4 * table.shape[1]), 1)
  for start in range(1, len(table), rows):
    yield start, _float32(table[start : start + rows])


def read_new_features(path: str | os.PathLike, *, width: int) -> np.ndarray:
  """Reads a table of new items, one row each and none for padding: float32 [N, V].

  Raises UserError as `new_features` does, for another kind of file, and for a first row of zeros:
  the padding row of a table for training, which would shift every item by one.
  """
  x_NV = new_features(read_table(path), path, width=width)
  if not x_NV[0].any():
    raise UserError(f"{path}: row 0 is all zeros; new items have no padding row, leave it out")
  return x_NV


def new_features(table: np.ndarray, source: str | os.PathLike, *, width: int) -> np.ndarray:
  """The table as float32 [N, V], N >= 1 new items; source is named in what is raised.

  Raises UserError for another shape, NaN or infinity.
  """
  if table.ndim != 2 or not len(table):
    raise UserError(
      f"{source}: a table of shape {list(table.shape)}; expected [new items, {width}], one row an "
      "item and none for padding"
    )
  if table.shape[1] != width:
    raise UserError(f"{source}: rows are {table.shape[1]} wide; expected {width}")
  raise_first(source, _of_type(table))
  x_NV = _float32(table)  # a copy: the file stays as it is
  bad = np.flatnonzero(~np.isfinite(x_NV).all(axis=1))
  if len(bad):
    raise UserError(f"{source}: row {bad[0]} holds NaN or infinity ({len(bad)} such rows)")
  return x_NV


def mean_and_deviation(table_IV: np.ndarray) -> tuple[np.ndarray, float]:
  """Mean of rows 1..I, float64 [V], and the one standard deviation of all their values from it;
  read in chunks."""
  total_V = sum(x.sum(0, dtype=np.float64) for _, x in row_chunks(table_IV))
  mean_V = total_V / (len(table_IV) - 1)
  squares = sum(float(((x - mean_V) ** 2).sum()) for _, x in row_chunks(table_IV))
  return mean_V, (squares / (len(table_IV) - 1) / len(mean_V)) ** 0.5


def covariance(table_IV: np.ndarray, mean_V: np.ndarray) -> np.ndarray:
  """Of rows 1..I, whose mean is given: float64 [V, V]; read in chunks."""
  centred = (x - mean_V for _, x in row_chunks(table_IV))
  return sum(x.T @ x for x in centred) / (len(table_IV) - 1)


class Whitening(NamedTuple):
  """What whitens rows [N, V], of training or new: float64 mean [V] and map [V, W]."""

  mean_V: np.ndarray
  map_VW: np.ndarray

  def __call__(self, x_NV: np.ndarray) -> np.ndarray:
    """float32 [N, W]."""
    return ((x_NV.astype(np.float64) - self.mean_V) @ self.map_VW).astype(np.float32)


def fit_whitening(x_IV: np.ndarray, width: int, std: float) -> Whitening:
  """To the first `width` principal components of rows 1..I, each of standard deviation `std`.

  Directions without variance (numerical rank) become zero columns rather than amplified noise.
  Deterministic: each component's sign makes its largest loading positive. Raises ValueError when
  `width` exceeds V.
  """
  mean_V, _ = mean_and_deviation(x_IV)
  variance, directions = principal_components(covariance(x_IV, mean_V), width)
  floor = max(variance[0], 0.0) * 1e-10
  scale = np.where(variance > floor, std / np.sqrt(np.maximum(variance, 1e-300)), 0.0)
  return Whitening(mean_V, directions * scale)


def whiten(x_IV: np.ndarray, by: Whitening) -> np.ndarray:
  """A table [I + 1, V] whitened, float32 [I + 1, W], row 0 zero."""
  whitened = by(x_IV)
  whitened[0] = 0
  return whitened


def principal_components(covariance_VV: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """The `width` largest variances [width] and their directions [V, width].

  Each direction's sign makes its largest loading positive. Raises ValueError when `width` exceeds
  V.
  """
  if not 1 <= width <= len(covariance_VV):
    raise ValueError(f"width {width} of a table that is {len(covariance_VV)} wide")
  variance_V, directions_VV = np.linalg.eigh(covariance_VV)
  directions = directions_VV[:, ::-1][:, :width]
  largest = np.abs(directions).argmax(axis=0)
  signs = np.where(directions[largest, np.arange(width)] < 0, -1.0, 1.0)
  return variance_V[::-1][:width], directions * signs


def read_table(path: str | os.PathLike) -> np.ndarray:
  """What the file holds, of any shape and type; a .npy is a memory map. Raises UserError for a file
  that is missing or of another kind."""
  readers = {".npy": read_npy, ".safetensors": _read_safetensors}
  return _by_kind(Path(path), readers)(Path(path))


def _shape(path: Path) -> tuple[int, ...]:
  readers = {".npy": lambda path: read_npy(path).shape, ".safetensors": _safetensors_shape}
  return tuple(_by_kind(path, readers)(path))


def _by_kind(path: Path, readers):
  if not path.is_file():
    raise UserError(f"{path}: no such file; expected a feature table, .npy or .safetensors")
  if path.suffix not in readers:
    raise UserError(f"{path}: unknown kind of feature table; expected .npy or .safetensors")
  return readers[path.suffix]


def _read_safetensors(path: Path) -> np.ndarray:
  return _of_safetensors(path, lambda file, name: file.get_tensor(name))


def _safetensors_shape(path: Path) -> list[int]:
  return _of_safetensors(path, lambda file, name: file.get_slice(name).get_shape())


def _of_safetensors(path: Path, take):
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      names = list(file.keys())
      if len(names) == 1:
        return take(file, names[0])
  except (OSError, safetensors.SafetensorError, TypeError, KeyError) as error:
    raise UserError(f"{path}: not a readable .safetensors file ({error})") from None
  raise UserError(f"{path}: {len(names)} tensors ({', '.join(names[:5])}); expected exactly one")
