"""Reads plain files of users; a missing or damaged one ends in one line that names it.

A pipe or device in the place of a file is refused: opening it would wait for its other end.
"""

import errno
import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmesid_jax.errors import UserError

MAX_DEPTH = 100  # of JSON: containers in containers; Python's own limit differs between versions
NPY_MAGIC = b"\x93NUMPY"
NPY_HEADER = 10_000  # bytes at most, as numpy has it


def open_to_read(path: Path) -> BinaryIO:
  """Opens a file for reading its bytes. Raises OSError, and UserError for a pipe or device."""
  return open(path, "rb", opener=_open_regular_file)


def check_regular_file(path: Path) -> None:
  """Raises as `open_to_read` does; for a file that a library opens by its name."""
  os.close(_open_regular_file(path, os.O_RDONLY))


def _open_regular_file(path: str | Path, options: int) -> int:
  descriptor = os.open(path, options | os.O_NONBLOCK | os.O_CLOEXEC)
  mode = os.fstat(descriptor).st_mode
  if stat.S_ISREG(mode):
    return descriptor
  os.close(descriptor)
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
  raise UserError(f"{path}: is not a regular file; write its contents to one first")


def read_bytes(path: Path) -> bytes:
  """The whole file. Raises UserError where it cannot be read."""
  try:
    with open_to_read(path) as file:
      return file.read()
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except (OSError, ValueError) as error:  # ValueError: a null byte in the name
    raise UserError(f"{path}: cannot be read ({_reason(error)})") from None


def parse_json(text: str | bytes) -> Any:
  """The value of a JSON text. Raises ValueError for whatever is wrong with it, depth too."""
  try:
    value = json.loads(text)
  except RecursionError:
    raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
  # most texts have too few brackets to be deep
  brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
  if sum(map(text.count, brackets)) > MAX_DEPTH and _depth(value) > MAX_DEPTH:
    raise ValueError(f"nested more than {MAX_DEPTH} deep")
  return value


def _depth(value: Any) -> int:
  depth, level = 0, [value]
  while level := [x for x in level if isinstance(x, dict | list)]:
    depth += 1
    level = [y for x in level for y in (x.values() if isinstance(x, dict) else x)]
  return depth


def read_json_object(
  path: Path, *, missing: str = "", remedy: str = "write or download it again"
) -> dict[str, Any]:
  """The object in a .json file. Raises UserError for one that is missing or holds anything else.

  missing, remedy: what to do where there is no such file, and about a damaged one, for the message.
  """
  if not path.exists():
    raise UserError(f"{path}: no such file" + (f"; {missing}" if missing else ""))
  try:
    found = parse_json(read_bytes(path))
  except ValueError as error:
    raise UserError(f"{path}: not a JSON object ({error}); {remedy}") from None
  if not isinstance(found, dict):
    raise UserError(f"{path}: not a JSON object, but a {type(found).__name__}; {remedy}")
  return found


def read_npy(path: Path) -> np.ndarray:
  """A .npy file as a memory map; the header is checked against the size of the file first.

  Raises UserError for one that is missing or not a plain array.
  """
  try:
    with open_to_read(path) as file:
      size = os.fstat(file.fileno()).st_size
      shape, fortran_order, dtype = _npy_header(file, size)
      offset = file.tell()
      if math.prod(shape) * dtype.itemsize > size - offset:
        raise ValueError(f"damaged: a shape of {list(shape)} in {size} bytes")
      order = "F" if fortran_order else "C"
      if not math.prod(shape):
        return np.empty(shape, dtype, order)
      return np.memmap(file, dtype, "r", offset, shape, order)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: not a plain .npy table ({_reason(error)})") from None


def _npy_header(file: BinaryIO, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Shape, order and type of a .npy file; the numbers follow. Raises ValueError."""
  other = ValueError("damaged or another format")
  magic, version = file.read(len(NPY_MAGIC)), tuple(file.read(2))
  if magic.startswith(b"PK"):
    raise ValueError("it is an .npz archive or another zip file; save each array as .npy")
  read_header = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(version)
  if magic != NPY_MAGIC or read_header is None:
    raise other
  prefix = file.read(2 * version[0])
  length = int.from_bytes(prefix, "little")
  if length > min(NPY_HEADER, size - file.tell()):
    raise other
  try:
    shape, fortran_order, dtype = read_header(io.BytesIO(prefix + file.read(length)))
  except Exception:  # Python's parser and numpy raise many kinds; the text is short
    raise other from None
  if dtype.hasobject:
    raise ValueError("it holds python objects")
  # numpy takes True for 1; a table without numbers may have sides of any length
  if any(type(n) is not int or not 0 <= n <= size for n in shape) or not dtype.itemsize:
    raise ValueError(f"damaged: a shape of {list(shape)} in {size} bytes")
  return shape, fortran_order, dtype


def _reason(error: Exception) -> str:
  return getattr(error, "strerror", None) or str(error)
