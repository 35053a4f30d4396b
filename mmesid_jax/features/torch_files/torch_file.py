"""Files that PyTorch or pickle wrote, as arrays: the zip format of torch.save, the one before it,
and plain pickles. Nothing is unpickled (see data.pickled)."""

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

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # with which torch.save began a file before 1.6
MAX_DEPTH = 16  # of containers in one another


class TorchFile(NamedTuple):
  """What a file holds, values as `read_pickle` gives them."""

  path: Path
  size: int  # of the file, in bytes
  value: object
  content: Callable[
    [StoredNumbers], memoryview | bytes
  ]  # of numbers that are stored beside the pickle

  def array(self, tensor: PickledTensor) -> np.ndarray:
    """The tensor's numbers, not copied. Raises UserError where they are not all
    there."""
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
    """Tensors and containers in its dicts, lists and tuples, by name: the keys and places that lead
    there, joined by dots. What is in a container that stands in several places is named once."""
    return _named_values(self.path, self.value, "", set(), 0)


def open_torch_file(path: Path) -> TorchFile:
  """Opens a file by what it holds, whatever its name. Raises UserError for one that is missing,
  damaged, or holds more than numbers, text and containers of them."""
  try:
    with path.open("rb") as file:
      content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except ValueError:
    raise UserError(f"{path}: is empty") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None
  if content[:4] == b"PK\3\4":
    return _open_zip(path, memoryview(content))
  return _open_pickle(path, content, memoryview(content))


def _open_zip(path: Path, content: memoryview) -> TorchFile:
  """A file of torch.save: data.pkl, and under data/ the numbers."""
  archive = _ZipArchive(path, content)
  roots = [name.removesuffix("data.pkl") for name in archive.members if name.endswith("/data.pkl")]
  if len(roots) != 1:
    raise UserError(f"{path}: a zip file with {len(roots)} data.pkl; those of PyTorch have one")
  (root,) = roots
  if f"{root}byteorder" in archive.members and archive.read(f"{root}byteorder") != b"little":
    raise UserError(f"{path}: was written on a machine of another byte order")
  pickled = archive.read(f"{root}data.pkl")
  value, _ = read_pickle(io.BytesIO(pickled), len(pickled), path)
  return TorchFile(
    path, len(content), value, lambda stored: archive.read(f"{root}data/{stored.key}")
  )


class _ZipArchive:
  """The members of a zip file, which PyTorch does not compress: views of the file."""

  def __init__(self, path: Path, content: memoryview):
    self.path, self.content = path, content
    self.views: dict[str, memoryview] = {}
    self.unread = len(content)  # bytes: members that overlap could be read without end
    try:
      with zipfile.ZipFile(path) as file:
        self.members = {member.filename: member for member in file.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
      raise UserError(f"{path}: not a whole file of PyTorch's ({error})") from None

  def read(self, name: str) -> memoryview:
    """Raises UserError for a member that is missing, damaged or compressed."""
    if name not in self.views:
      self.views[name] = self._view(name)
    return self.views[name]

  def _view(self, name: str) -> memoryview:
    member = self.members.get(name)
    if member is None or member.compress_type != zipfile.ZIP_STORED:
      reason = "compressed" if member else "missing"
      raise UserError(f"{self.path}: {name[:80]} is {reason}; not as PyTorch writes it")
    begin = member.header_offset + 30  # a header, which ends with the lengths of what follows it
    for at in (begin - 4, begin - 2):  # name, extra field
      begin += int.from_bytes(self.content[at : at + 2], "little")
    view = self.content[begin:][: member.file_size]
    self.unread -= member.file_size
    if self.unread < 0 or len(view) != member.file_size or zlib.crc32(view) != member.CRC:
      raise UserError(f"{self.path}: {name[:80]} is damaged or cut off")
    return view


def _open_pickle(path: Path, stream: BinaryIO, content: memoryview) -> TorchFile:
  """A plain pickle, or a file of the older torch.save: magic number, version, machine, value, keys
  of the numbers, and then under each key how many there are and the numbers."""
  size = len(content)
  value, stored = read_pickle(stream, size, path)
  if value != MAGIC:
    if stored:
      raise UserError(f"{path}: a pickle of PyTorch's without the numbers; copy the whole file")
    if stream.tell() < size:
      raise UserError(f"{path}: more follows its first pickle, which ends at byte {stream.tell()}")
    return TorchFile(path, size, value, bytes)
  version, machine = (read_pickle(stream, size, path)[0] for _ in range(2))
  if version != PROTOCOL or not isinstance(machine, dict) or not machine.get("little_endian"):
    raise UserError(f"{path}: of another version of torch.save or of a machine of another kind")
  value, stored = read_pickle(stream, size, path)
  keys, _ = read_pickle(stream, size, path)
  texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
  if not texts or set(keys) != stored.keys():
    raise UserError(f"{path}: damaged: its tensors are of other numbers than it lists")
  at, contents = stream.tell(), {}
  for key in keys:
    numbers = stored[key]
    begin, at = at + 8, at + 8 + numbers.size * numbers.dtype.itemsize
    if at > size or int.from_bytes(content[begin - 8 : begin], "little") != numbers.size:
      raise UserError(f"{path}: damaged or cut off at byte {begin - 8}")
    contents[key] = content[begin:at]
  return TorchFile(path, size, value, lambda numbers: contents[numbers.key])


def _read_nested(path: Path, file: bytes) -> tuple[np.dtype, memoryview]:
  """Type and content of the one storage that a file within a pickle holds."""
  inner = _open_pickle(path, io.BytesIO(file), memoryview(file))
  if not isinstance(inner.value, StoredNumbers):
    raise UserError(f"{path}: damaged: a tensor without its numbers")
  return inner.value.dtype, inner.content(inner.value)


def _named_values(path: Path, value: object, prefix: str, seen: set[int], depth: int):
  if depth > MAX_DEPTH:
    raise UserError(f"{path}: containers stand in one another more than {MAX_DEPTH} deep")
  if id(value) in seen:
    return
  seen.add(id(value))
  for key, inner in container_entries(value):
    if isinstance(inner, PickledTensor | dict | list | tuple):
      yield f"{prefix}{key}", inner
      yield from _named_values(path, inner, f"{prefix}{key}.", seen, depth + 1)


def container_entries(value: object) -> list[tuple[object, object]]:
  """What stands in a dict, list or tuple, with its key or place; nothing for other values."""
  if isinstance(value, dict):
    return list(value.items())
  return list(enumerate(value)) if isinstance(value, list | tuple) else []
