"""Writes arrays, .npy or .safetensors: tables through a memory map, so they may exceed memory, and
arrays that are there as a whole."""

import contextlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_file, open_atomic

CHUNK_BYTES = 32 * 2**20
SAFETENSORS = {  # numpy's names of types -> those of safetensors
  **{"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "uint8": "U8"},
  **{"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
}


def check_table_file(path: Path, dtype: np.dtype) -> None:
  """Raises UserError for a name of another format, and for a type that the format cannot hold."""
  if path.suffix not in (".npy", ".safetensors"):
    raise UserError(f"{path}: unknown kind of output; expected .npy or .safetensors")
  if path.suffix == ".npy" and dtype.name == "bfloat16":
    raise UserError(f"{path}: .npy cannot hold bfloat16; name it {path.stem}.safetensors")
  if path.suffix == ".safetensors" and dtype.name not in SAFETENSORS:
    raise UserError(f"{path}: .safetensors does not hold {dtype.name} here; name it .npy")


def cast_rows(x_EV: np.ndarray, dtype: np.dtype | str) -> tuple[np.ndarray, np.ndarray]:
  """The rows as `dtype`, and which of them, bool [E], had numbers and became zeros.

  A number that is too large becomes infinite.
  """
  with np.errstate(over="ignore"):
    cast_EV = x_EV.astype(dtype)
  return cast_EV, (x_EV != 0).any(axis=1) & ~(cast_EV != 0).any(axis=1)


@contextlib.contextmanager
def create_table(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
  """A memory-mapped table of zeros, to be filled in the block.

  The file gets its name when the block ends, and only if it does not raise. Raises UserError as
  `check_table_file` does, and for what the disk refuses.
  """
  check_table_file(path, dtype)
  with atomic_file(path) as temporary:
    with temporary.open("wb") as file:
      offset = file.write(_header(path, shape, dtype))
      # Written, not only reserved: a memory map on a full disk would end the process by a signal.
      left = math.prod(shape) * dtype.itemsize
      while left:
        left -= file.write(bytes(min(left, CHUNK_BYTES)))
    table = np.memmap(temporary, dtype, "r+", offset, shape)
    yield table
    table.flush()


def write_feature_table(path: Path, table: np.ndarray) -> None:
  """Writes a table [N, V] in this machine's byte order. Raises UserError as `create_table` does."""
  rows = max(CHUNK_BYTES // max(table[:1].nbytes, 1), 1)
  with create_table(path, table.shape, table.dtype.newbyteorder("=")) as out:
    for start in reporter.progress(range(0, len(table), rows), "writing"):
      out[start : start + rows] = table[start : start + rows]


def write_array(path: Path, array: np.ndarray) -> None:
  """Writes an array, without a copy if it is in C order.

  Raises UserError for what the disk refuses, which np.save does not always notice: it lets C write,
  whose errors have no number, and which keeps the end of the file in a buffer of its own.
  """
  array = np.asarray(array, order="C")
  with open_atomic(path) as file:
    file.write(_header(path, array.shape, array.dtype))
    file.write(array.reshape(-1).view(np.uint8))


def _header(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
  if path.suffix == ".npy":
    header = io.BytesIO()
    about = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()
  size = math.prod(shape) * dtype.itemsize
  about = {"dtype": SAFETENSORS[dtype.name], "shape": shape, "data_offsets": [0, size]}
  text = json.dumps({"vectors": about}).encode()
  text += b" " * (-len(text) % 8)  # aligns the numbers
  return len(text).to_bytes(8, "little") + text
