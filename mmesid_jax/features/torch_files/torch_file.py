"""Opens files of PyTorch or pickle: both formats of torch.save, and plain pickles.

Nothing is unpickled (see pickle_reader).
"""

import io
import mmap
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.features.torch_files.arrays import (
  InlineNumbers,
  NestedNumbers,
  PickledTensor,
  StoredNumbers,
)
from mmesid_jax.features.torch_files.pickle_reader import read_pickle
from mmesid_jax.files.readers import open_to_read

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # at the start of files of torch.save before 1.6
MAX_DEPTH = 16  # of nested containers
SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle")  # as such files are usually called
BINARY_PICKLE = b"\x80"  # the first byte; pickles of the oldest protocols begin with any letter


class TorchFile(NamedTuple):
  """The content of a file; its values are those of `read_pickle`."""

  path: Path
  size: int  # of the file, in bytes
  value: object
  content: Callable[[StoredNumbers], memoryview | bytes]  # numbers outside the pickle

  def array(self, tensor: PickledTensor) -> np.ndarray:
    """Returns the tensor's numbers, without a copy. Raises UserError if some are missing."""
    try:
      match tensor.numbers:
        case InlineNumbers(dtype, content):
          return tensor.view(dtype.numpy, content)
        case StoredNumbers(dtype):
          return tensor.view(dtype, self.content(tensor.numbers))
        case NestedNumbers() as numbers:
          numbers.opened = numbers.opened or _read_nested(self.path, numbers.file)
          return tensor.view(*numbers.opened)
    except ValueError as error:
      raise UserError(f"{self.path}: damaged: {error}") from None
    raise UserError(f"{self.path}: damaged: an array without its numbers")

  def named(self) -> Iterator[tuple[str, object]]:
    """Yields the tensors and containers in its dicts, lists and tuples, with their names.

    A name is the keys and places that lead there, joined by dots. The content of a container that
    is in several places is yielded once.
    """
    return _named_values(self.path, self.value, "", set(), 0)


def open_torch_file(path: Path) -> TorchFile:
  """Opens a file; its content decides the format, not its name.

  Raises UserError for a file that is missing, damaged, or holds anything other than numbers, text
  and containers of them.
  """
  try:
    with open_to_read(path) as file:
      content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except ValueError:
    raise UserError(f"{path}: is empty") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None
  if content[:4] == b"PK\3\4":
    return _open_zip(path, memoryview(content))
  try:
    return _open_pickle(path, content, memoryview(content))
  except UserError as error:
    if path.suffix in SUFFIXES or content[:1] == BINARY_PICKLE:
      raise
    reason = str(error).removeprefix(f"{path}: ")
    raise UserError(
      f"{path}: not a file of PyTorch or pickle ({reason}); `vectors convert` reads .pt, .pth, "
      ".bin and .pkl, `vectors join` reads .parquet, .npy and .safetensors"
    ) from None


def _open_zip(path: Path, content: memoryview) -> TorchFile:
  """Opens a zip file of torch.save: data.pkl, and the numbers under data/."""
  archive = _ZipArchive(path, content)
  roots = [name.removesuffix("data.pkl") for name in archive.members if name.endswith("/data.pkl")]
  if len(roots) != 1:
    raise UserError(f"{path}: a zip file with {len(roots)} data.pkl; files of PyTorch have one")
  (root,) = roots
  if f"{root}byteorder" in archive.members and archive.read(f"{root}byteorder") != b"little":
    raise UserError(f"{path}: was written on a machine with another byte order")
  pickled = archive.read(f"{root}data.pkl")
  value, _ = read_pickle(io.BytesIO(pickled), len(pickled), path)
  return TorchFile(
    path, len(content), value, lambda stored: archive.read(f"{root}data/{stored.key}")
  )


class _ZipArchive:
  """The members of a zip file as views of the file, since PyTorch does not compress them."""

  def __init__(self, path: Path, content: memoryview):
    self.path, self.content = path, content
    self.views: dict[str, memoryview] = {}
    self.unread = len(content)  # bytes: a limit, because members may overlap
    try:
      with zipfile.ZipFile(path) as file:
        self.members = {member.filename: member for member in file.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
      raise UserError(f"{path}: not a complete file of PyTorch ({error})") from None

  def read(self, name: str) -> memoryview:
    """Returns the bytes of a member. Raises UserError if it is missing, damaged or compressed."""
    if name not in self.views:
      self.views[name] = self._view(name)
    return self.views[name]

  def _view(self, name: str) -> memoryview:
    member = self.members.get(name)
    if member is None or member.compress_type != zipfile.ZIP_STORED:
      reason = "compressed" if member else "missing"
      raise UserError(f"{self.path}: {name[:80]} is {reason}; PyTorch does not write that")
    begin = member.header_offset + 30  # the header ends with the lengths of two more fields
    for at in (begin - 4, begin - 2):  # name, extra field
      begin += int.from_bytes(self.content[at : at + 2], "little")
    view = self.content[begin:][: member.file_size]
    self.unread -= member.file_size
    if self.unread < 0 or len(view) != member.file_size or zlib.crc32(view) != member.CRC:
      raise UserError(f"{self.path}: {name[:80]} is damaged or cut off")
    return view


def _open_pickle(path: Path, stream: BinaryIO, content: memoryview) -> TorchFile:
  """Opens a plain pickle, or a file of torch.save before 1.6.

  The latter holds a magic number, version, machine, value, the keys of the storages, and then for
  each key the number of numbers and the numbers.
  """
  size = len(content)
  value, stored = read_pickle(stream, size, path)
  if value != MAGIC:
    if stored:
      raise UserError(f"{path}: a pickle of PyTorch without its numbers; copy the whole file")
    if stream.tell() < size:
      raise UserError(f"{path}: more follows its first pickle, which ends at byte {stream.tell()}")
    return TorchFile(path, size, value, bytes)
  version, machine = (read_pickle(stream, size, path)[0] for _ in range(2))
  if version != PROTOCOL or not isinstance(machine, dict) or not machine.get("little_endian"):
    raise UserError(f"{path}: from another version of torch.save or another kind of machine")
  value, stored = read_pickle(stream, size, path)
  keys, _ = read_pickle(stream, size, path)
  texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
  if not texts or set(keys) != stored.keys():
    raise UserError(f"{path}: damaged: its tensors use other storages than it lists")
  at, contents = stream.tell(), {}
  for key in keys:
    numbers = stored[key]
    begin, at = at + 8, at + 8 + numbers.size * numbers.dtype.itemsize
    if at > size or int.from_bytes(content[begin - 8 : begin], "little") != numbers.size:
      raise UserError(f"{path}: damaged or cut off at byte {begin - 8}")
    contents[key] = content[begin:at]
  return TorchFile(path, size, value, lambda numbers: contents[numbers.key])


def _read_nested(path: Path, file: bytes) -> tuple[np.dtype, memoryview]:
  """Returns type and content of the one storage in a file inside a pickle."""
  inner = _open_pickle(path, io.BytesIO(file), memoryview(file))
  if not isinstance(inner.value, StoredNumbers):
    raise UserError(f"{path}: damaged: a tensor without its numbers")
  return inner.value.dtype, inner.content(inner.value)


def _named_values(path: Path, value: object, prefix: str, seen: set[int], depth: int):
  if depth > MAX_DEPTH:
    raise UserError(f"{path}: its containers are nested more than {MAX_DEPTH} deep")
  if id(value) in seen:
    return
  seen.add(id(value))
  for key, inner in container_entries(value):
    if isinstance(inner, PickledTensor | dict | list | tuple):
      yield f"{prefix}{key}", inner
      yield from _named_values(path, inner, f"{prefix}{key}.", seen, depth + 1)


def container_entries(value: object) -> list[tuple[object, object]]:
  """Returns the entries of a dict, list or tuple with their keys or places; else nothing."""
  if isinstance(value, dict):
    return list(value.items())
  return list(enumerate(value)) if isinstance(value, list | tuple) else []
