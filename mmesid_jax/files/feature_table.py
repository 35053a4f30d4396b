"""Writes feature tables, .npy or .safetensors, through a memory map: larger than memory if need
be."""

import contextlib
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmesid_jax.errors import UserError, writing

CHUNK_BYTES = 32 * 2**20
SAFETENSORS = {  # their names of numpy's types
  **{"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "uint8": "U8"},
  **{"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
}


def check(path: Path, dtype: np.dtype) -> None:
  """Raises UserError for a name of another kind of file, and a type that this kind cannot hold."""
  if path.suffix not in (".npy", ".safetensors"):
    raise UserError(f"{path}: unknown kind of output; expected .npy or .safetensors")
  if path.suffix == ".npy" and dtype.name == "bfloat16":
    raise UserError(f"{path}: .npy cannot hold bfloat16; name it {path.stem}.safetensors")
  if path.suffix == ".safetensors" and dtype.name not in SAFETENSORS:
    raise UserError(f"{path}: .safetensors does not hold {dtype.name} here; name it .npy")


@contextlib.contextmanager
def creating(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
  """The table, all zeros, to be filled within the block; the file is there complete, once the block
  ends, or not at all. Raises UserError as `check` does and where the disk refuses it."""
  check(path, dtype)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with temporary.open("wb") as file:
        offset = file.write(_header(path, shape, dtype))
        # written, not only reserved: of a full disk a memory map would tell by a signal
        left = math.prod(shape) * dtype.itemsize
        while left:
          left -= file.write(bytes(min(left, CHUNK_BYTES)))
      table = np.memmap(temporary, dtype, "r+", offset, shape)
      yield table
      table.flush()
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def write(path: Path, table: np.ndarray) -> None:
  """Writes a table [N, V] as `creating` does, in this machine's byte order."""
  rows = max(CHUNK_BYTES // max(table[:1].nbytes, 1), 1)
  with creating(path, table.shape, table.dtype.newbyteorder("=")) as out:
    for start in tqdm(range(0, len(table), rows), "writing", delay=3, leave=False):
      out[start : start + rows] = table[start : start + rows]


def _header(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
  if path.suffix == ".npy":
    header = io.BytesIO()
    about = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()
  size = math.prod(shape) * dtype.itemsize
  about = {"dtype": SAFETENSORS[dtype.name], "shape": shape, "data_offsets": [0, size]}
  text = json.dumps({"vectors": about}).encode()
  text += b" " * (-len(text) % 8)  # so that the numbers are aligned
  return len(text).to_bytes(8, "little") + text
