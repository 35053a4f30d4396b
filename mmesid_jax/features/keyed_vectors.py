"""Reads vectors and their keys from .npy and .safetensors (parquet_vectors: from Parquet)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.features import read_table
from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import parse_json, read_bytes
from mmesid_jax.files.tensor_file import TensorFile

CHUNK_BYTES = 32 * 2**20  # read at once


class KeyedVectors(NamedTuple):
  """E vectors of one width and their keys, in the order of the file."""

  path: Path
  keys: list[str]  # [E]; integers as text
  width: int
  chunks: Callable[[], Iterator[np.ndarray]]  # [rows, width] each, numbers of any type


def read_keyed_table(path: Path, keys_path: Path) -> KeyedVectors:
  """Reads a table from .npy, or .safetensors with one tensor, and the keys of its rows.

  If there is one more row than keys and row 0 is all zeros, row 0 is taken for padding.

  Raises UserError for files that are missing, damaged or of another kind, a table that is not 2-d,
  and a number of rows that differs from the number of keys.
  """
  table, keys = read_table(path), read_keys(keys_path)
  if table.ndim != 2 or not table.size:
    raise UserError(
      f"{path}: a table of shape {list(table.shape)}; expected [items, width], each at least 1"
    )
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
  """Reads .safetensors whose tensors are vectors and whose names are the keys.

  Raises UserError for a file that is missing, damaged, or holds anything else.
  """
  file = TensorFile(path)
  keys = file.keys()
  shapes = [list(file.shape(key)) for key in keys]
  if len(keys) == 1 and len(shapes[0]) == 2:
    raise UserError(
      f"{path}: holds a table without keys; give them with --keys=FILE, one for every row"
    )
  width = _common_width(path, keys, shapes)

  def chunks() -> Iterator[np.ndarray]:
    step = max(CHUNK_BYTES // (8 * width), 1)
    for start in range(0, len(keys), step):
      yield np.stack([file.read(key) for key in keys[start : start + step]])

  return KeyedVectors(path, keys, width, chunks)


def _common_width(path: Path, keys: list[str], shapes: list[list[int]]) -> int:
  """Returns the width of all tensors. Raises UserError unless all are vectors of one width."""
  for key, shape in zip(keys, shapes, strict=True):
    if len(shape) != 1 or shape != shapes[0] or not shape[0]:
      raise UserError(
        f"{path}: tensor {key!r} has the shape {shape}; expected a vector, [width], width at "
        "least 1 and that of all others"
      )
  if not keys:
    raise UserError(f"{path}: holds no tensors")
  return shapes[0][0]


def read_keys(path: Path) -> list[str]:
  """Reads keys from .npy of text or integers, .json with a list of them, or text, one per line.

  Raises UserError for a file that is missing, empty or holds anything else, and for an empty key.
  """
  if path.suffix == ".npy":
    keys = _npy_keys(path)
  elif path.suffix == ".json":
    keys = _json_keys(path)
  else:
    keys = _text_keys(path)
  if not keys:
    raise UserError(f"{path}: is empty; expected one key for every vector")
  for number, key in enumerate(keys, 1):
    if not key.strip():  # that of an empty line at the end would count as the last vector's
      raise UserError(f"{path}:{number}: the key is empty; expected one for every vector")
  return keys


def _npy_keys(path: Path) -> list[str]:
  keys = read_table(path)
  if keys.ndim != 1 or keys.dtype.kind not in "iuUS":
    raise UserError(
      f"{path}: {keys.dtype} of shape {list(keys.shape)}; expected a list of text or integers"
    )
  try:
    keys = np.char.decode(keys, "utf-8") if keys.dtype.kind == "S" else keys
    return [str(key) for key in keys.tolist()]
  except (ValueError, SystemError) as error:  # SystemError: numbers above those of Unicode
    raise UserError(f"{path}: a key is not Unicode text ({error})") from None


def _text_keys(path: Path) -> list[str]:
  try:
    lines = read_bytes(path).decode("utf-8-sig").split("\n")
  except UnicodeDecodeError:
    raise UserError(f"{path}: is not text; expected one key per line") from None
  if not lines[-1]:
    lines.pop()
  return [line.removesuffix("\r") for line in lines]


def _json_keys(path: Path) -> list[str]:
  try:
    keys = parse_json(read_bytes(path))
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error})") from None
  if not isinstance(keys, list):
    raise UserError(f"{path}: expected a JSON list of keys")
  for place, key in enumerate(keys):
    if type(key) not in (str, int):
      kind = type(key).__name__
      raise UserError(f"{path}: entry {place} of the list is a {kind}; expected text or an integer")
  return [str(key) for key in keys]
