"""Raw files: lines of text, compressed or not, read in bounded memory with a progress bar."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import tqdm
import zstandard

from mmesid_jax.errors import UserError

LONGEST = 16 * 2**20  # bytes of a line; one without an end would otherwise fill the memory
CHUNK = 2**20
QUOTED = 3  # bad lines that are told
BEYOND = 100  # bad lines behind the last allowed one, after which the rest is not read

GZIP, ZSTANDARD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


class BadLines:
  """Lines that cannot be used: counted, the first ones quoted, at most `allowed` of them."""

  def __init__(self, allowed: int = 0):
    self.allowed, self.count, self.quoted = allowed, 0, []

  def add(self, path: Path | str, number: int, reason: object) -> None:
    """reason: what is wrong with line (or row) `number`. Raises UserError as `check` does, once far
    too many are bad."""
    self.count += 1
    if len(self.quoted) < QUOTED:
      self.quoted.append(f"{path}:{number}: {' '.join(str(reason).split())[:160]}")
    if self.count > self.allowed + BEYOND:
      self._refuse("at least ")

  def check(self) -> None:
    """Raises UserError where more than the allowed lines are bad."""
    if self.count > self.allowed:
      self._refuse("")

  def _refuse(self, at_least: str) -> None:
    raise UserError(
      f"{at_least}{self.count} bad lines, allowed are {self.allowed} (--config.max_bad_lines): "
      + "; ".join(self.quoted)
    )


def file_format(path: Path) -> bytes:
  """GZIP, ZSTANDARD or PARQUET by the first bytes, b"" for anything else. Raises UserError, for
  what is no regular file too: its first bytes are read twice."""
  if path.exists() and not path.is_file() and not path.is_dir():
    raise UserError(f"{path}: not a regular file; write what it gives to one first")
  try:
    with path.open("rb") as file:
      start = file.read(4)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None
  return next((m for m in (GZIP, ZSTANDARD, PARQUET) if start.startswith(m)), b"")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
  """Number, from 1, and bytes of every line that is not blank, without its end.

  gzip and Zstandard are told by their first bytes. Raises UserError for a file that cannot be read
  or ends in the middle of its compressed data, and for a line of more than 16 MiB.
  """
  number = 0
  try:
    with _opened(path) as file:
      begun = b""
      while chunk := file.read(CHUNK):
        *whole, begun = (begun + chunk).split(b"\n")
        for number, line in enumerate(whole, number + 1):  # noqa: B020
          if line and not line.isspace():
            yield number, line
        if len(begun) > LONGEST:
          raise UserError(
            f"{path}:{number + 1}: longer than {LONGEST >> 20} MiB; is this a text file?"
          )
      if begun and not begun.isspace():
        yield number + 1, begun
  except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
    raise UserError(
      f"{path}: damaged or incomplete after line {number} ({error}); get the file again"
    ) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
  compressed = file_format(path)
  with path.open("rb") as raw, _progress(raw, path) as counted:
    if compressed == GZIP:
      yield io.BufferedReader(gzip.GzipFile(fileobj=counted), CHUNK)
    elif compressed == ZSTANDARD:
      yield io.BufferedReader(_Zstandard(counted), CHUNK)
    else:
      yield io.BufferedReader(counted, CHUNK)


@contextlib.contextmanager
def _progress(raw: BinaryIO, path: Path) -> Iterator["_Counted"]:
  options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "delay": 2, "leave": False}
  with tqdm.tqdm(total=path.stat().st_size, desc=path.name, **options) as bar:
    yield _Counted(raw, bar)


class _Counted(io.RawIOBase):
  """A file whose bytes move a progress bar."""

  def __init__(self, raw: BinaryIO, bar: tqdm.tqdm):
    self._raw, self._bar = raw, bar

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    read = self._raw.readinto(buffer)
    self._bar.update(read)
    return read


class _Zstandard(io.RawIOBase):
  """Decompressed frames one after another. Unlike zstandard's own reader it does not take the end
  of a file that is cut off for the end of the data."""

  def __init__(self, raw: io.RawIOBase):
    self._raw, self._frame, self._left = raw, None, b""

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._left:
      data = (self._frame and self._frame.unused_data) or self._raw.read(CHUNK // 8)
      if self._frame is None or self._frame.eof:
        if not data:
          return 0
        self._frame = zstandard.ZstdDecompressor().decompressobj()
      elif not data:
        raise EOFError("the compressed data ends too early")
      self._left = self._frame.decompress(data)
    part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
    buffer[: len(part)] = part
    return len(part)
