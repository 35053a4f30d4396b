"""Feature tables: one row an item, row 0 the padding item, from .npy or .safetensors files."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors

from mmesid_jax.errors import UserError

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
  path = Path(path)
  if not path.is_file():
    raise UserError(f"{path}: no such file; expected a feature table, .npy or .safetensors")
  readers = {".npy": _read_npy, ".safetensors": _read_safetensors}
  if path.suffix not in readers:
    raise UserError(f"{path}: unknown kind of feature table; expected .npy or .safetensors")
  table = readers[path.suffix](path)
  if table.ndim != 2 or not table.shape[-1]:
    raise UserError(f"{path}: a table of shape {list(table.shape)}; expected [items + 1, width]")
  if len(table) != num_items + 1:
    raise UserError(
      f"{path}: {len(table)} rows; expected {num_items + 1}, one for each of the {num_items} items "
      "after a row 0 for padding"
    )
  if width is not None and table.shape[1] != width:
    raise UserError(f"{path}: rows are {table.shape[1]} wide; expected {width}")
  if table.dtype.kind in "OSUMmVc" and table.dtype.name != "bfloat16":
    raise UserError(f"{path}: holds values of type {table.dtype}; expected numbers")
  if table.dtype.name not in AS_THEY_ARE or not table.dtype.isnative:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, reported below
      table = table.astype(np.float32)
  _check_values(path, table)
  return table


def _check_values(path: Path, table: np.ndarray) -> None:
  bad, first_bad, constant = 0, None, len(table) > 2  # of a single item nothing is expected
  for start, x in _item_rows(table):
    found = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(found) and first_bad is None:
      first_bad = start + found[0]
    bad += len(found)
    constant = constant and bool((x == np.float32(table[1])).all())
  if bad:
    raise UserError(f"{path}: row {first_bad} holds NaN or infinity ({bad} such rows)")
  if constant:
    raise UserError(
      f"{path}: all {len(table) - 1} items have the same row; expected vectors that tell them apart"
    )


def _item_rows(table: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Number of the first row and float32 rows, chunk by chunk from row 1 on."""
  rows = max(CHUNK_BYTES // (4 * table.shape[1]), 1)
  for start in range(1, len(table), rows):
    yield start, np.float32(table[start : start + rows])


def whiten(x_IV: np.ndarray, width: int, std: float) -> np.ndarray:
  """The first `width` principal components of rows 1..I, each scaled to standard deviation `std`.

  [I + 1, V] -> float32 [I + 1, width], row 0 zero. Directions without variance (numerical rank)
  become zero columns rather than amplified noise. Deterministic: each component's sign makes its
  largest loading positive. Raises ValueError when `width` exceeds V.
  """
  if not 1 <= width <= x_IV.shape[1]:
    raise ValueError(f"width {width} of a table that is {x_IV.shape[1]} wide")
  x = x_IV[1:].astype(np.float64)
  x -= x.mean(axis=0)
  variance_V, directions_VV = np.linalg.eigh(x.T @ x / len(x))
  variance, directions = variance_V[::-1][:width], directions_VV[:, ::-1][:, :width]
  largest = np.abs(directions).argmax(axis=0)
  directions = directions * np.where(directions[largest, np.arange(width)] < 0, -1.0, 1.0)
  floor = max(variance_V[-1], 0.0) * 1e-10
  scale = np.where(variance > floor, std / np.sqrt(np.maximum(variance, 1e-300)), 0.0)
  whitened = np.zeros((len(x_IV), width), np.float32)
  whitened[1:] = x @ (directions * scale)
  return whitened


def _read_npy(path: Path) -> np.ndarray:
  try:
    return np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    # of a file that is no .npy at all numpy says that it may be a pickle
    objects = "Python objects" in str(error)
    reason = "it holds python objects" if objects else "damaged or another format"
    raise UserError(f"{path}: not a plain .npy table ({reason})") from None


def _read_safetensors(path: Path) -> np.ndarray:
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      names = list(file.keys())
      if len(names) == 1:
        return file.get_tensor(names[0])
  except (OSError, safetensors.SafetensorError, TypeError, KeyError) as error:
    raise UserError(f"{path}: not a readable .safetensors file ({error})") from None
  raise UserError(f"{path}: {len(names)} tensors ({', '.join(names[:5])}); expected exactly one")
