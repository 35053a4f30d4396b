"""Reads plain files of users; a missing or damaged one ends in one line that names it."""

from pathlib import Path

import numpy as np

from mmesid_jax.errors import UserError


def read_bytes(path: Path) -> bytes:
  """The whole file. Raises UserError where it cannot be read."""
  try:
    return path.read_bytes()
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_npy(path: Path) -> np.ndarray:
  """A .npy file as a memory map. Raises UserError for one that is missing or not a plain array."""
  try:
    return np.load(path, mmap_mode="r", allow_pickle=False)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except (OSError, ValueError, EOFError) as error:
    # numpy says of any file that is not .npy that it may be a pickle
    objects = "Python objects" in str(error)
    reason = "it holds python objects" if objects else "damaged or another format"
    raise UserError(f"{path}: not a plain .npy table ({reason})") from None
