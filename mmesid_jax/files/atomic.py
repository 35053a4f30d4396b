"""Writes files and folders that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mmesid_jax.errors import UserError, report_disk_errors

_FOREIGN_SHOWN = 3


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
  """A temporary path to write to, in the same folder, which replaces `path` when the block ends.

  When the block raises, the temporary file is removed and `path` stays as it was. Its folder is
  made where there is none; permissions follow the umask. Raises UserError, which names `path`,
  for what the disk refuses.
  """
  temporary = _temporary_name(path)
  with report_disk_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      temporary.touch()
      mode = temporary.stat().st_mode
      yield temporary
      _finish_file(temporary, mode)
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
  """`atomic_file`, opened for writing bytes."""
  with atomic_file(path) as temporary, temporary.open("wb") as file:
    yield file


@contextlib.contextmanager
def atomic_folder(folder: Path, *, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
  """A temporary folder to fill, which takes the place of `folder` when the block ends.

  Args:
    folder: may exist and be empty; a link to a folder is followed.
    replaces: names of files that a folder may hold which was written before. Such a folder is
      removed, but only after the new one has its name.

  When the block raises, the temporary folder is removed and `folder` stays as it was. Raises
  UserError for a folder that holds other files, before the block and after it, and for what the
  disk refuses.
  """
  folder = folder.resolve()
  _check_replaceable(folder, replaces)
  temporary, old = _temporary_name(folder), _temporary_name(folder)
  with report_disk_errors(folder):
    temporary.mkdir(parents=True)
    mode = temporary.stat().st_mode
    try:
      yield temporary
      for file in filter(Path.is_file, temporary.rglob("*")):
        _finish_file(file, mode)
      _check_replaceable(folder, replaces)
      if folder.is_dir() and any(folder.iterdir()):
        os.replace(folder, old)  # a folder that holds files cannot be replaced in one step
        try:
          os.replace(temporary, folder)
        except BaseException:
          os.replace(old, folder)
          raise
        shutil.rmtree(old, ignore_errors=True)
      else:
        os.replace(temporary, folder)
    except BaseException:
      shutil.rmtree(temporary, ignore_errors=True)
      raise


def _temporary_name(path: Path) -> Path:
  """A hidden name that no other process or thread uses."""
  return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _finish_file(path: Path, mode: int) -> None:
  """Syncs a written file to disk, and allows others to read and write it as far as `mode` does.

  mode: of a file or folder that Python made, and so as the user's umask has it. Libraries may make
  files that only their owner can read, as safetensors does.
  """
  with path.open("rb") as file:
    os.fsync(file.fileno())  # a network disk may refuse the bytes as late as here
  present = stat.S_IMODE(path.stat().st_mode)
  if (wanted := present | (mode & 0o666)) != present:
    path.chmod(wanted)


def _check_replaceable(folder: Path, replaces: tuple[str, ...]) -> None:
  """Raises UserError for a folder that holds files of other names, and for a file."""
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder}: is a file; expected the name of a folder")
  present = sorted(f.name for f in folder.iterdir()) if folder.is_dir() else []
  if present and not replaces:
    raise UserError(f"{folder}: exists by now; did another run write it?")
  if foreign := [name for name in present if name not in replaces]:
    names = ", ".join(foreign[:_FOREIGN_SHOWN])
    raise UserError(
      f"{folder}: also holds {names}, which would be lost; move that away, or name another folder"
    )
