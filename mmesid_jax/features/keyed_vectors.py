"""Vectors and the keys they belong to, as users keep them: .npy, .safetensors (Parquet is in
data.parquet)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

from mmesid_jax.data.features import read_table
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import read_bytes

CHUNK_BYTES = 32 * 2**20  # of vectors that are read at once


class KeyedVectors(NamedTuple):
  """N vectors of one width and their keys, in the order of the file."""

  path: Path
  keys: list[str]  # [N]; integers as text
  width: int
  chunks: Callable[[], Iterator[np.ndarray]]  # [n, width] each, numbers of any type


def read_keyed_table(path: Path, keys_path: Path) -> KeyedVectors:
  """A table of .npy, or the only one of .safetensors, whose keys stand in another file in the order
  of its rows. With one row more than keys, row 0 is taken for padding if it is all zeros.

  Raises UserError for files that are missing, damaged or of another kind, a table that is not 2-d,
  and another number of keys than of rows.
  """
  table, keys = read_table(path), read_keys(keys_path)
  if table.ndim != 2 or not table.size:
    raise UserError(f"{path}: a table of shape {list(table.shape)}; expected [items, width]")
  if table.dtype.kind not in "fiu" and table.dtype.name != "bfloat16":
    raise UserError(f"{path}: holds values of type {table.dtype}; expected numbers")
  padded = len(table) == len(keys) + 1 and not np.any(table[0])
  if len(table) - padded != len(keys):
    raise UserError(f"{path}: {len(table)} rows, but {keys_path} holds {len(keys)} keys")
  return KeyedVectors(path, keys, table.shape[1], lambda: _table_chunks(table[padded:]))


def _table_chunks(table: np.ndarray) -> Iterator[np.ndarray]:
  step = max(CHUNK_BYTES // table[0].nbytes, 1)
  for start in range(0, len(table), step):
    yield table[start : start + step]


def read_tensor_per_key(path: Path) -> KeyedVectors:
  """.safetensors whose tensors are vectors, named by their keys. Raises UserError for a file that
  is missing, damaged, or holds anything else."""
  try:
    file = safetensors.safe_open(path, framework="numpy")
    keys = list(file.keys())
    shapes = [file.get_slice(key).get_shape() for key in keys]
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{path}: not a readable .safetensors file ({error})") from None
  if len(keys) == 1 and len(shapes[0]) == 2:
    raise UserError(f"{path}: holds a table; --keys=FILE must say whose rows these are")
  width = _common_width(path, keys, shapes)

  def chunks() -> Iterator[np.ndarray]:
    step = max(CHUNK_BYTES // (8 * width), 1)
    for start in range(0, len(keys), step):
      yield np.stack([file.get_tensor(key) for key in keys[start : start + step]])

  return KeyedVectors(path, keys, width, chunks)


def _common_width(path: Path, keys: list[str], shapes: list[list[int]]) -> int:
  for key, shape in zip(keys, shapes, strict=True):
    if len(shape) != 1 or shape != shapes[0] or not shape[0]:
      raise UserError(
        f"{path}: tensor {key!r} has the shape {shape}; expected a vector like all others, of the "
        "shape [width]"
      )
  if not keys:
    raise UserError(f"{path}: holds no tensors")
  return shapes[0][0]


def read_keys(path: Path) -> list[str]:
  """Keys of a file: .npy of text or integers, .json with a list of them, or text with one a line.
  Raises UserError for a file that is missing, empty or holds anything else."""
  if path.suffix == ".npy":
    keys = read_table(path)
    if keys.ndim != 1 or keys.dtype.kind not in "iuUS":
      raise UserError(
        f"{path}: {keys.dtype} of shape {list(keys.shape)}; expected a list of text or integers"
      )
    try:
      keys = np.char.decode(keys, "utf-8") if keys.dtype.kind == "S" else keys
    except UnicodeDecodeError as error:
      raise UserError(f"{path}: a key is not UTF-8 ({error})") from None
    found = [str(key) for key in keys.tolist()]
  elif path.suffix == ".json":
    found = _json_keys(path)
  else:
    try:
      found = read_bytes(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
      raise UserError(f"{path}: is not text; expected one key a line") from None
    found = [key.removesuffix("\r") for key in (found if found[-1] else found[:-1])]
  if not found:
    raise UserError(f"{path}: is empty; expected one key for every vector")
  return found


def _json_keys(path: Path) -> list[str]:
  try:
    keys = json.loads(read_bytes(path))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: not JSON ({error})") from None
  if not isinstance(keys, list):
    raise UserError(f"{path}: expected a JSON list of keys")
  for place, key in enumerate(keys):
    if type(key) not in (str, int):
      kind = type(key).__name__
      raise UserError(f"{path}: entry {place} of the list is a {kind}; expected text or an integer")
  return [str(key) for key in keys]
