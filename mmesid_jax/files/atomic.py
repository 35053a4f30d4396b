"""Writes files and folders that appear whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mmesid_jax.errors import UserError, report_disk_errors


def check_new_file(path: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
  """Raises UserError unless a command may write its --output to this place.

  It may not where a file exists already, unless `overwrite`, and never where a folder or one of the
  command's own `inputs` is.
  """
  if path.is_dir():
    raise UserError(f"--output={path}: is a folder; expected the name of a file")
  if any(file.exists() and path.exists() and path.samefile(file) for file in inputs):
    raise UserError(f"--output={path}: is read by this command; name another file")
  if not overwrite and os.path.lexists(path):
    raise UserError(f"--output={path}: exists already; name another file, or pass --overwrite")


def check_new_directory(directory: Path) -> None:
  """Raises UserError for a directory that exists: nothing is written over."""
  if os.path.lexists(directory):
    raise UserError(f"{directory}: exists already; name a new directory")


def refuse_folder(path: Path) -> None:
  """Raises UserError for a folder where a file is read or written."""
  if path.is_dir():
    raise UserError(f"{path}: is a folder, expected a file; move it away")


def refuse_linked_folders(folder: Path, names: Iterable[str]) -> None:
  """Raises UserError where one of the entries `names` of a folder, or one below it, is a symbolic
  link to anything but a file: what is written or deleted there would be in another folder."""
  waiting = [folder / name for name in names]
  while waiting:
    path = waiting.pop()
    if not path.is_symlink():
      with contextlib.suppress(FileNotFoundError):  # a run may be deleting its old checkpoints
        waiting += path.iterdir() if path.is_dir() else ()
    elif not path.is_file():
      raise UserError(
        f"{path}: is a symbolic link to {os.readlink(path)}, which is not followed; expected a "
        "folder of its own: remove the link"
      )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
  """A temporary path to write to, in the same folder, which replaces `path` when the block ends.

  When the block raises, the temporary file is removed and `path` stays as it was. Its folder is
  made where there is none; permissions follow the umask. Raises UserError, which names `path`,
  for a folder in its place, and for what the disk refuses.
  """
  refuse_folder(path)
  temporary = _temporary_name(path)
  with report_disk_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      temporary.touch(exist_ok=False)
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
  """A temporary folder to fill, which becomes `folder` when the block ends.

  Args:
    folder: a link is followed. It may exist and be empty.
    replaces: names of the files that an earlier call wrote. With them `folder` may also hold files:
      those of these names are removed once the new folder has its name, others are moved there.

  When the block raises, the temporary folder is removed and `folder` stays as it was. Raises
  UserError for a folder that holds files without `replaces`, and for what the disk refuses.
  """
  folder = follow_links(folder)
  temporary = _temporary_name(folder)
  with report_disk_errors(folder):
    temporary.mkdir(parents=True)
    mode = temporary.stat().st_mode
    try:
      yield temporary
      for file in filter(Path.is_file, temporary.rglob("*")):
        _finish_file(file, mode)
      if not folder.is_dir() or not any(folder.iterdir()):
        os.replace(temporary, folder)
      elif replaces:
        _swap_folders(temporary, folder, replaces)
      else:
        raise UserError(f"{folder}: exists by now; did another run write it?")
    except BaseException:
      shutil.rmtree(temporary, ignore_errors=True)
      raise


def follow_links(path: Path) -> Path:
  """The absolute path without symbolic links. Raises UserError for links that lead in a circle."""
  try:
    path.stat()
  except OSError as error:
    if error.errno == errno.ELOOP:
      raise UserError(
        f"{path}: its symbolic links lead in a circle; remove them, or name another place"
      ) from None
  return path.resolve()


def _swap_folders(new: Path, folder: Path, replaces: tuple[str, ...]) -> None:
  """Renames `new` to `folder`, and moves the old one's other files into it."""
  old = _temporary_name(folder)
  os.replace(folder, old)  # no call replaces a folder that holds files
  try:
    os.replace(new, folder)
  except BaseException:
    os.replace(old, folder)
    raise
  for file in old.iterdir():
    if file.name not in replaces and not (folder / file.name).exists():
      os.replace(file, folder / file.name)
  shutil.rmtree(old, ignore_errors=True)


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
