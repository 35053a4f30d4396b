"""The files of a data set's folder: their names, and how they are read and written."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmesid_jax.errors import UserError, writing

SEQUENCES, ITEMS, USERS, TIMES = "sequences.txt", "items.jsonl", "users.jsonl", "times.npy"


def read_bytes(path: Path) -> bytes:
  """The whole file. Raises UserError where it cannot be read."""
  try:
    return path.read_bytes()
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_npy(path: Path) -> np.ndarray:
  """A .npy file, memory-mapped. Raises UserError for one that is missing, damaged or no plain
  table."""
  try:
    return np.load(path, mmap_mode="r", allow_pickle=False)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except (OSError, ValueError, EOFError) as error:
    # of a file that is no .npy at all numpy says that it may be a pickle
    objects = "Python objects" in str(error)
    reason = "it holds python objects" if objects else "damaged or another format"
    raise UserError(f"{path}: not a plain .npy table ({reason})") from None


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
  """Writes a file that is there complete or not at all: under a temporary name, then renamed.
  Raises UserError where the disk refuses it."""
  with writing(path):
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
      with os.fdopen(handle, "wb") as file:
        write(file)
      os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared cache from one's colleagues
      os.replace(temporary, path)
    except BaseException:
      os.unlink(temporary)
      raise


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
  """A folder under a temporary name, which becomes `output` once the block is done: it is there
  complete or not at all. Raises UserError for one that holds something by then, and where the disk
  refuses it."""
  output = output.resolve()  # of a link what it leads to
  with writing(output):
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
      yield folder
      folder.chmod(0o755)  # mkdtemp's 0700, as above
      if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output}: exists by now; did another run write it?")
      folder.replace(output)
    except BaseException:
      shutil.rmtree(folder, ignore_errors=True)
      raise
