"""Reads the header of a GGUF file: what describes the model, and the shapes of its tensors.

Sizes are checked against the file before anything is read: the library that reads the weights
believes every length that a file gives. Source: the specification of GGUF, versions 2 and 3.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import open_to_read

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Numbers of types -> struct's letters.
SCALARS = {
  0: "B",
  1: "b",
  2: "H",
  3: "h",
  4: "I",
  5: "i",
  6: "f",
  7: "?",
  10: "Q",
  11: "q",
  12: "d",
}
TEXT, LIST = 8, 9
AXES = 4  # of a tensor, at most
LARGEST_TEXT = 1 << 20  # bytes of a key, a name or a value; a chat template has some thousand


class GgufHeader(NamedTuple):
  """Description of the model and of the tensors in a GGUF file.

  Args:
    fields: single values by their keys.
    lengths: the numbers of values of the fields that are lists.
    shapes: of the tensors by their names, the axis that changes fastest first, as in the file.
  """

  fields: dict[str, Any]
  lengths: dict[str, int]
  shapes: dict[str, tuple[int, ...]]


def read_gguf_header(path: Path) -> GgufHeader:
  """Reads the file up to its tensors.

  Raises UserError for a file that is missing or none of this format and these versions, and for one
  whose header says more than the file holds.
  """
  if not path.is_file():
    raise UserError(f"{path}: no such file; name a GGUF file")
  with open_to_read(path) as file:
    return _Cursor(path, file).header()


class _Cursor:
  """Reads one value after the other, and never beyond the end of the file."""

  def __init__(self, path: Path, file: BinaryIO):
    self._path, self._file, self._size = path, file, path.stat().st_size

  def header(self) -> GgufHeader:
    if (start := self._file.read(len(MAGIC))) != MAGIC:
      raise UserError(
        f"{self._path}: is no GGUF file; it begins with {start!r}, expected {MAGIC!r}"
      )
    if (version := self._number("I")) not in VERSIONS:
      self._refuse(f"version {version}, expected {' or '.join(map(str, VERSIONS))}")
    tensors, fields = self._number("Q"), self._number("Q")
    self._check_rest("tensors and fields", tensors + fields, 12)
    header = GgufHeader({}, {}, {})
    for _ in range(fields):
      self._read_field(header)
    for _ in range(tensors):
      self._read_tensor(header)
    return header

  def _read_field(self, header: GgufHeader) -> None:
    key, kind = self._text(), self._number("I")
    if key in header.fields or key in header.lengths:
      self._refuse(f"{key!r} twice")
    if kind != LIST:
      header.fields[key] = self._text() if kind == TEXT else self._number(self._letter(key, kind))
      return
    kind, length = self._number("I"), self._number("Q")
    header.lengths[key] = length
    if kind == TEXT:
      self._check_rest(key, length, struct.calcsize("Q"))
      for _ in range(length):
        self._skip(key, self._number("Q"))
    else:
      self._skip(key, length * struct.calcsize(self._letter(key, kind)))

  def _read_tensor(self, header: GgufHeader) -> None:
    name, axes = self._text(), self._number("I")
    if name in header.shapes:
      self._refuse(f"{name!r} twice")
    if not 1 <= axes <= AXES:
      self._refuse(f"{name!r} with {axes} axes, expected 1 to {AXES}")
    shape = tuple(self._number("Q") for _ in range(axes))
    self._number("I"), self._number("Q")  # the type and the place
    # The smallest types take more than a bit for a number.
    if not 1 <= math.prod(shape) <= 8 * self._size:
      self._refuse(f"{name!r} of shape {shape}, which a file of {self._size:,} bytes cannot hold")
    header.shapes[name] = shape

  def _letter(self, key: str, kind: int) -> str:
    if kind not in SCALARS:
      self._refuse(f"{key!r} with values of type {kind}")
    return SCALARS[kind]

  def _number(self, letter: str) -> Any:
    content = self._file.read(struct.calcsize(letter))
    if len(content) < struct.calcsize(letter):
      self._refuse("a header that does not end")
    return struct.unpack(f"<{letter}", content)[0]

  def _text(self) -> str:
    length = self._number("Q")
    self._check_rest("a text", length, 1)
    if length > LARGEST_TEXT:
      self._refuse(f"a text of {length:,} bytes")
    try:
      return self._file.read(length).decode()
    except UnicodeDecodeError:
      self._refuse("a text that is not UTF-8")

  def _skip(self, key: str, size: int) -> None:
    self._check_rest(key, size, 1)
    self._file.seek(size, 1)

  def _check_rest(self, key: str, count: int, size: int) -> None:
    """Refuses `count` values of at least `size` bytes where the rest of the file is shorter."""
    if count * size > self._size - self._file.tell():
      self._refuse(f"{key!r} of {count:,} values, which is more than the file has")

  def _refuse(self, found: str) -> NoReturn:
    raise UserError(f"{self._path}: holds {found}; the file is damaged, or of another kind")
