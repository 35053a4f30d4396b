"""Large outputs that are made piece by piece, so that a stopped run continues where it was.

A PartialTable grows by rows in one file, a PartFiles by whole files in a folder, OUTPUT.parts.
Both keep the settings that they were made from and refuse others.
"""

import contextlib
import filecmp
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError, disk_fault, report_disk_errors
from mmesid_jax.files import artifact, rows
from mmesid_jax.files.append import append_bytes, open_to_append
from mmesid_jax.files.atomic import check_new_file
from mmesid_jax.files.lock import LOCK, try_lock
from mmesid_jax.files.provenance import MADE_FROM, check_made_from, check_same_settings
from mmesid_jax.files.readers import parse_json

SETTINGS = "settings.json"
# What a killed run leaves of the file that it was writing.
HALF_WRITTEN = re.compile(r"\.(\d{6}\.|joined\.|settings\.)\w+\.[0-9a-f]{8}\.tmp")
SYNC_SECONDS = 10  # a kill loses no appended row, a power cut at most the rows of this time


class PartialTable:
  """Rows [N, V] in the order in which they are appended, after one line of JSON with the settings.

  A row that a kill cut short is not counted.
  """

  def __init__(self, file: BinaryIO, path: Path, width: int, dtype: np.dtype):
    self._file, self._path, self._width, self._dtype = file, path, width, dtype
    file.seek(0)
    self._start = len(file.readline())
    self._synced = time.monotonic()

  def __len__(self) -> int:
    """The number of whole rows."""
    return (os.fstat(self._file.fileno()).st_size - self._start) // self._row_bytes

  @property
  def _row_bytes(self) -> int:
    return self._width * self._dtype.itemsize

  def append(self, x_BV: np.ndarray) -> None:
    """Adds rows at the end. Raises UserError where the disk refuses them."""
    with report_disk_errors(self._path):
      append_bytes(self._file, x_BV.astype(self._dtype).tobytes())
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
def open_partial_table(
  path: Path, made_from: Mapping[str, Any], width: int, dtype: str, *, overwrite: bool
) -> Iterator[PartialTable]:
  """The table at `path`, new or as an earlier run left it; one run at a time holds it.

  Args:
    path: the file.
    made_from: the settings that decide the rows.
    width: V, the number of columns.
    dtype: the rows' type.
    overwrite: whether a table that was made from other settings is started again from row 0.

  Raises UserError where another run holds it, for a table of other settings, and where the disk
  refuses it; then no table without a row stays.
  """
  with report_disk_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  with open_to_append(path) as file:
    if not try_lock(file, path, "no other run writes it"):
      raise UserError(f"{path}: another run is writing it; wait until it is done")
    table = None
    try:
      if not _has_rows(file, path, made_from, overwrite):
        file.truncate(0)
        with report_disk_errors(path):
          append_bytes(file, json.dumps({MADE_FROM: dict(made_from)}).encode() + b"\n")
      table = PartialTable(file, path, width, np.dtype(dtype))
      yield table
    except Exception as error:
      if not table and disk_fault(error):  # without a row there is nothing to continue
        path.unlink(missing_ok=True)
      raise


def _has_rows(file: BinaryIO, path: Path, made_from: Mapping[str, Any], overwrite: bool) -> bool:
  """Whether the file holds rows of these settings, to be continued."""
  file.seek(0)
  line = file.readline()
  start = f'{{"{MADE_FROM}": {{'.encode()
  if line[: len(start)] != start[: len(line)]:
    raise UserError(f"{path}: another program wrote it; move it away, or choose another --output")
  if not line.endswith(b"\n"):  # new, or the run was killed at once
    return False
  try:
    check_made_from(path, line, made_from)
  except UserError:
    if not overwrite:
      raise
    reporter.info(f"{path}: was made from something else; starting again")
    return False
  return True


class PartFiles:
  """The folder OUTPUT.parts with `count` parts; the output is put together from all of them.

  Args:
    output: the final file, Parquet or JSON lines.
    count: the number of parts.
    settings: everything that decides what the parts hold, as JSON gives it back.
    overwrite: whether an output that exists may be replaced. That of a run which was killed as it
      ended, and so holds what all the parts hold, always may.

  Raises UserError for a folder of other settings, for one that this class did not make, and for a
  link to one.
  """

  def __init__(
    self, output: Path, count: int, settings: Mapping[str, Any], *, overwrite: bool = False
  ):
    self.output, self._count = output, count
    self.folder = parts_folder(output)
    mark = self.folder / SETTINGS
    if mark.is_file():
      self._check_settings(mark, settings)
      check_new_file(output, overwrite=overwrite or self._is_joined())
      return
    check_new_file(output, overwrite=overwrite)
    if foreign := sorted(f.name for f in self._foreign_files()):
      raise UserError(
        f"{self.folder}: holds {foreign[0]} and no {SETTINGS}, so it is not known what it is; "
        "move it away, or choose another --output"
      )
    artifact.write_text(mark, json.dumps(settings, indent=1) + "\n")

  def missing(self) -> list[int]:
    """The parts that do not exist yet, counted from 0."""
    return [n for n in range(self._count) if not self._part(n).is_file()]

  def write(self, n: int, schema: rows.Schema, columns: rows.Columns) -> None:
    """Writes part n."""
    rows.write_rows(self._part(n), schema, columns)

  def finish(self) -> None:
    """Joins all parts to the output, and removes them and their folder."""
    os.replace(self._join(), self.output)
    for n in range(self._count):
      self._part(n).unlink()
    for name in (LOCK, SETTINGS):  # the settings go last, so that a killed run can be resumed
      (self.folder / name).unlink(missing_ok=True)
    for file in self.folder.glob(".*.tmp"):
      if HALF_WRITTEN.fullmatch(file.name):
        file.unlink()
    with contextlib.suppress(OSError):  # somebody has put another file there
      self.folder.rmdir()

  def _join(self) -> Path:
    """Writes what the output is to hold."""
    joined = self.folder / f"joined{self.output.suffix}"
    rows.join_row_files([self._part(n) for n in range(self._count)], joined)
    return joined

  def _is_joined(self) -> bool:
    """Whether the output is a file that holds what all the parts hold."""
    if self.missing() or not self.output.is_file():
      return False
    joined = self._join()
    same = filecmp.cmp(joined, self.output, shallow=False)
    joined.unlink()
    return same

  def _part(self, n: int) -> Path:
    return self.folder / f"{n:06}{self.output.suffix}"

  def _foreign_files(self) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
      for file in self.folder.iterdir():
        # ".settings.json.*" is left by a run that was killed as it started
        if file.name != LOCK and not file.name.removeprefix(".").startswith(SETTINGS):
          yield file

  def _check_settings(self, mark: Path, settings: Mapping[str, Any]) -> None:
    try:
      before = parse_json(mark.read_bytes())
    except ValueError:
      before = None
    if not isinstance(before, dict):
      raise UserError(f"{mark}: is not as it was written; delete {self.folder} to start again")
    check_same_settings(
      before,
      settings,
      label=f"{self.folder}: holds parts of another run",
      remedy="finish that one with its own settings, or delete the folder to start again",
    )


def parts_folder(output: Path) -> Path:
  """The folder in which the parts of `output` are kept. Raises UserError for a link there."""
  folder = output.with_name(f"{output.name}.parts")
  if folder.is_symlink():  # it could lead into any other folder
    raise UserError(f"{folder}: is a symbolic link, which is not followed; remove it")
  return folder


@contextlib.contextmanager
def without_empty_parts(folder: Path) -> Iterator[None]:
  """Removes the folder, if the block made it, where the disk refuses its very first part."""
  is_new = not folder.exists()
  try:
    yield
  except Exception as error:
    unused = {f.name for f in folder.glob("*")} <= {LOCK, SETTINGS}
    if is_new and unused and disk_fault(error):
      shutil.rmtree(folder, ignore_errors=True)
    raise
