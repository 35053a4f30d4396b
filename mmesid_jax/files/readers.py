"""Reads plain files of users; a missing or damaged one ends in one line that names it."""

import json
from pathlib import Path
from typing import Any

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


def read_json_object(path: Path, *, missing: str = "") -> dict[str, Any]:
  """The object in a .json file. Raises UserError for one that is missing or holds anything else.

  missing: what to do where there is no such file, for the message.
  """
  if not path.is_file():
    raise UserError(f"{path}: no such file" + (f"; {missing}" if missing else ""))
  try:
    found = json.loads(read_bytes(path))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: not a JSON object ({error}); write or download it again") from error
  if not isinstance(found, dict):
    raise UserError(f"{path}: not a JSON object, but a {type(found).__name__}")
  return found


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
