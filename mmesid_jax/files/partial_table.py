"""Vectors of a table that is not whole yet, kept so that a killed run goes on where it was."""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmesid_jax.errors import UserError, writing

SYNC_SECONDS = 10  # a kill loses nothing that was appended; a power cut at most so much


class PartialTable:
  """Rows [N, V] in the order in which they come, behind a line of JSON that says what they are made
  from. Rows are appended; one that a kill cut short is not counted."""

  def __init__(self, file: BinaryIO, path: Path, width: int, dtype: np.dtype):
    self._file, self._path, self._width, self._dtype = file, path, width, dtype
    file.seek(0)
    self._start = len(file.readline())
    self._synced = time.monotonic()

  def __len__(self) -> int:
    """Whole rows."""
    return (os.fstat(self._file.fileno()).st_size - self._start) // self._row_bytes

  @property
  def _row_bytes(self) -> int:
    return self._width * self._dtype.itemsize

  def append(self, x_BV: np.ndarray) -> None:
    """Raises UserError where the disk refuses it."""
    with writing(self._path):
      self._file.write(x_BV.astype(self._dtype).tobytes())
      self._file.flush()
      if time.monotonic() - self._synced > SYNC_SECONDS:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

  def truncate(self, rows: int) -> None:
    """Keeps the first `rows` rows."""
    self._file.truncate(self._start + rows * self._row_bytes)

  def rows(self) -> np.ndarray:
    """A memory map of all rows, [N, V]."""
    shape = (len(self), self._width)
    return np.memmap(self._path, self._dtype, mode="r", offset=self._start, shape=shape)


@contextlib.contextmanager
def partial_table(
  path: Path, made_from: Mapping[str, Any], width: int, dtype: str, *, overwrite: bool
) -> Iterator[PartialTable]:
  """The table at `path`, new or as an earlier run left it; one run at a time holds it.

  Raises UserError where another run holds it, and for one that was made from something else, unless
  `overwrite`: then it begins anew.
  """
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
  with file:
    _lock(file, path)
    if not _begun(file, path, made_from, overwrite):
      with writing(path):
        file.truncate(0)
        file.write(json.dumps({"made_from": dict(made_from)}).encode() + b"\n")
        file.flush()
    yield PartialTable(file, path, width, np.dtype(dtype))


def _lock(file: BinaryIO, path: Path) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise UserError(f"{path}: another run is writing it; wait until it is done") from None
  except OSError as error:  # a file system without locks
    warning = f"{error.strerror}; see to it that no other run writes it"
    print(f"warning: {path}: {warning}", file=sys.stderr)


def _begun(file: BinaryIO, path: Path, made_from: Mapping[str, Any], overwrite: bool) -> bool:
  """Whether the file holds rows to go on from."""
  file.seek(0)
  line = file.readline()
  if not line.endswith(b"\n"):  # new, or killed at once
    return False
  try:
    check_made_from(path, line, made_from)
  except UserError:
    if not overwrite:
      raise
    print(f"{path}: was made from something else; begun anew")
    return False
  return True


def check_made_from(path: Path, record: bytes, made_from: Mapping[str, Any]) -> None:
  """Raises UserError, which names the first difference, unless `made_from` in the JSON object
  `record`, read from `path`, is this."""
  try:
    before = dict(json.loads(record)["made_from"])
  except (ValueError, KeyError, TypeError, RecursionError):
    raise UserError(
      f"{path}: does not say what it was made from; choose another --output, or --overwrite"
    ) from None
  for name in sorted(made_from.keys() | before.keys()):
    if before.get(name) != made_from.get(name):
      raise UserError(
        f"{path}: made from something else: {name} was {before.get(name)!r}, now "
        f"{made_from.get(name)!r}; choose another --output, or --overwrite"
      )
