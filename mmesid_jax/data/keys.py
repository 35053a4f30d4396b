"""Whose rows these are: the keys by which users and items are known outside, as a prepared dataset
keeps them.

Line n of items.jsonl describes item n and line n of users.jsonl the user on line n of
sequences.txt, each with its `key`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from mmesid_jax.data.dataset import ITEMS
from mmesid_jax.errors import UserError

USERS = "users.jsonl"
KEY = "key"


def item_keys(directory: str | os.PathLike, field: str = KEY) -> list[str]:
  """Keys of items 1..I, [I]: `field` of every line of items.jsonl. Raises UserError for a file that
  is missing, a line that has no such text, and a key that two lines share."""
  return _keys(Path(directory) / ITEMS, field)


def user_keys(directory: str | os.PathLike, field: str = KEY) -> list[str]:
  """Keys of the users, [U], in the order of sequences.txt: `field` of every line of users.jsonl.
  Raises UserError as `item_keys` does."""
  return _keys(Path(directory) / USERS, field)


def kept_item_keys(directory: str | os.PathLike, field: str | None = None) -> list[str] | None:
  """`item_keys` of a folder that may keep none, then None: no items.jsonl, or no `key` on its first
  line. A field that is asked for must be there."""
  path = Path(directory) / ITEMS
  return _keys(path, field or KEY) if field or _kept(path) else None


def kept_user_keys(directory: str | os.PathLike, users: int) -> Iterator[str] | None:
  """Keys of that many users in the order of sequences.txt, read as they are asked for; None where
  the folder keeps none. Raises UserError, at once, where users.jsonl has another number of lines.
  """
  path = Path(directory) / USERS
  if not _kept(path):
    return None
  with path.open("rb") as file:
    lines = sum(1 for line in file if line.strip())
  if lines != users:
    raise UserError(f"{path}: {lines} lines; expected one for each of the {users} users")
  return (key for _, key in _lines(path, KEY))


def _kept(path: Path) -> bool:
  """Whether the first line of the file, if there is one, has a key; it need not be a good one."""
  if not path.is_file():
    return False
  try:
    with path.open("rb") as file:
      first = json.loads(file.readline())
  except (ValueError, RecursionError):
    return True  # what is wrong with it is told by who reads all of it
  return not isinstance(first, dict) or KEY in first


def _keys(path: Path, field: str) -> list[str]:
  lines: dict[str, int] = {}
  for number, key in _lines(path, field):
    if first := lines.get(key):
      raise UserError(f"{path}:{number}: key {key!r} already stands on line {first}")
    lines[key] = number
  return list(lines)


def _lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
  """Number, from 1, and key of every line. Raises UserError."""
  if not path.is_file():
    raise UserError(f"{path}: no such file")
  with path.open("rb") as file:
    for number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      try:
        found = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise UserError(
          f"{path}:{number}: not JSON ({error}); expected one object a line"
        ) from None
      key = found.get(field) if isinstance(found, dict) else None
      if not isinstance(key, str):
        some = ", ".join(sorted(found)[:8]) if isinstance(found, dict) else type(found).__name__
        raise UserError(
          f"{path}:{number}: no text under {field!r}, which should be the key ({some})"
        )
      try:
        key.encode()
      except UnicodeEncodeError:  # half of a pair, which no file could hold
        raise UserError(f"{path}:{number}: key {key!r} is no Unicode text") from None
      yield number, key
