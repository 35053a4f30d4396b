"""Reads lines of text, compressed or not, in bounded memory with a progress bar."""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import open_to_read

LONGEST = 16 * 2**20  # bytes of a line; a file without line ends must not fill the memory
CHUNK = 2**20
QUOTED = 3  # number of bad lines that are quoted
BEYOND = 100  # reading stops after this number of bad lines more than allowed

# Byte-order marks; that of UTF-32 begins with one of UTF-16.
MARKS = {
  codecs.BOM_UTF8: "utf-8",
  codecs.BOM_UTF32_LE: "utf-32",
  codecs.BOM_UTF32_BE: "utf-32",
  codecs.BOM_UTF16_LE: "utf-16",
  codecs.BOM_UTF16_BE: "utf-16",
}
GZIP, ZSTANDARD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


class BadLines:
  """Counts lines that cannot be used, and quotes the first ones; `allowed` of them are no error."""

  def __init__(self, allowed: int = 0):
    self.allowed, self.count, self.quoted = allowed, 0, []
    self.long_rows, self.first_long_row = 0, ""  # rows of CSV that span several lines

  def add(self, path: Path | str, number: int, reason: object) -> None:
    """Adds a bad line (or row) and the reason. Raises UserError once far too many are bad."""
    self.count += 1
    if len(self.quoted) < QUOTED:
      self.quoted.append(f"{path}:{number}: {' '.join(str(reason).split())[:160]}")
    if self.count > self.allowed + BEYOND:
      self._raise("at least ")

  def note_long_row(self, path: Path, begins: int, ends: int) -> None:
    """Counts a row that spans several lines, perhaps because of a quotation mark in a text."""
    self.long_rows += 1
    self.first_long_row = self.first_long_row or f"{path}:{begins} to {ends}"

  def check(self) -> None:
    """Raises UserError if more lines are bad than allowed."""
    if self.count > self.allowed:
      self._raise("")

  def _raise(self, at_least: str) -> None:
    raise UserError(
      f"{at_least}{self.count} bad lines, allowed are {self.allowed} (--config.max_bad_lines): "
      + "; ".join(self.quoted)
    )


def file_format(path: Path) -> bytes:
  """Returns GZIP, ZSTANDARD or PARQUET by the first bytes, b"" for anything else.

  Raises UserError for a file that cannot be read, and for one that is not a regular file, because
  its first bytes are read twice.
  """
  try:
    with open_to_read(path) as file:
      start = file.read(4)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None
  return next((magic for magic in (GZIP, ZSTANDARD, PARQUET) if start.startswith(magic)), b"")


def read_lines(path: Path, encoding: str = "") -> Iterator[tuple[int, bytes]]:
  """Yields number, from 1, and UTF-8 without line end of every line that is not blank.

  gzip and Zstandard are recognized by their first bytes. A byte-order mark tells the encoding, then
  `encoding` does; without either, bytes stay as they are. Bytes that the encoding does not have
  stay too, so that their line is not UTF-8. Raises UserError for a file that cannot be read or ends
  in the middle of its compressed data, for a line of more than 16 MiB, and for lines that end with
  a carriage return alone.
  """
  number = 0
  try:
    with _open_decompressed(path) as file:
      partial = b""  # line whose end has not been read
      for chunk in _utf8_chunks(file, encoding):
        *lines, partial = (partial + chunk).split(b"\n")
        for number, line in enumerate(lines, number + 1):  # noqa: B020
          if line and not line.isspace():
            yield number, line
        if len(partial) > LONGEST:
          _check_line_ends(path, number, partial)
          raise UserError(
            f"{path}:{number + 1}: longer than {LONGEST >> 20} MiB; is this a text file?"
          )
      _check_line_ends(path, number, partial)
      if partial and not partial.isspace():
        yield number + 1, partial
  except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
    raise UserError(
      f"{path}: damaged or incomplete after line {number} ({error}); get the file again"
    ) from None
  except UnicodeError as error:
    raise UserError(
      f"{path}: after line {number}, not {encoding or 'UTF-16'} ({error}); name the encoding by "
      "--config.encoding"
    ) from None


def _check_line_ends(path: Path, number: int, partial: bytes) -> None:
  """Raises UserError for a file whose only line holds the line ends of old Macs."""
  if number == 0 and b"\r" in partial.strip():
    raise UserError(
      f"{path}: its lines end with a carriage return alone; convert them, as by "
      "tr '\\r' '\\n' <OLD >NEW"
    )


def _utf8_chunks(file: BinaryIO, encoding: str) -> Iterator[bytes]:
  chunk = file.read(CHUNK)
  encoding = next((name for mark, name in MARKS.items() if chunk.startswith(mark)), encoding)
  if not encoding or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
    while chunk:
      yield chunk
      chunk = file.read(CHUNK)
    return
  decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
  while chunk:
    yield decoder.decode(chunk).encode("utf-8", "surrogateescape")
    chunk = file.read(CHUNK)
  yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _open_decompressed(path: Path) -> Iterator[BinaryIO]:
  compression = file_format(path)
  with open_to_read(path) as raw, _count_bytes(raw, path) as counted:
    if compression == GZIP:
      yield io.BufferedReader(gzip.GzipFile(fileobj=counted), CHUNK)
    elif compression == ZSTANDARD:
      yield io.BufferedReader(_Zstandard(counted), CHUNK)
    else:
      yield io.BufferedReader(counted, CHUNK)


@contextlib.contextmanager
def _count_bytes(raw: BinaryIO, path: Path) -> Iterator["_CountedFile"]:
  options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
  with reporter.progress(label=path.name, total=path.stat().st_size, **options) as bar:
    yield _CountedFile(raw, bar.update)


class _CountedFile(io.RawIOBase):
  """A file that calls `on_read` with the number of bytes of every read."""

  def __init__(self, raw: BinaryIO, on_read: Callable[[int], object]):
    self._raw, self._on_read = raw, on_read

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    count = self._raw.readinto(buffer)
    self._on_read(count)
    return count


class _Zstandard(io.RawIOBase):
  """Decompresses Zstandard frames one after another.

  Unlike the reader of zstandard, it raises EOFError for a file that is cut off.
  """

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
