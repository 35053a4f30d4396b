"""Whose rows these are: the keys by which users and items are known outside, as a prepared dataset
keeps them.

Line n of items.jsonl describes item n and line n of users.jsonl the user on line n of
sequences.txt, each with its `key`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmesid_jax.data.folder.problems import Mistake, read_json_lines, require_valid
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import ITEMS, USERS

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


def kept_user_keys(directory: str | os.PathLike, users: int) -> list[str] | None:
  """`user_keys` of a folder that may keep none, then None. Raises UserError for another number of
  them than `users`, too."""
  path = Path(directory) / USERS
  if not _kept(path):
    return None
  found = _keys(path, KEY)
  if len(found) != users:
    raise UserError(f"{path}: {len(found)} lines; expected one for each of the {users} users")
  return found


def _kept(path: Path) -> bool:
  """Whether the first line of the file, if there is one, has a key; it need not be a good one."""
  if not path.is_file():
    return False
  with path.open("rb") as file:
    line = file.readline()
  try:
    first = json.loads(line)
  except (ValueError, RecursionError):
    return True  # what is wrong with it is told by who reads all of it
  return not isinstance(first, dict) or KEY in first


def _keys(path: Path, field: str) -> list[str]:
  return list(require_valid(path, scan_keys(read_json_lines(path), field)))


def scan_keys(lines: Iterable[tuple[int, object]], field: str = KEY) -> Iterator[str | Mistake]:
  """The key of every one of `mistakes.json_lines`, or what is wrong with the line."""
  first_line: dict[str, int] = {}
  for number, found in lines:
    if isinstance(found, Mistake):
      yield found
      continue
    key = found.get(field) if isinstance(found, dict) else None
    key = str(key) if type(key) is int else key
    if not isinstance(key, str):
      some = ", ".join(sorted(found)[:8]) if isinstance(found, dict) else type(found).__name__
      text = f"no text under {field!r}, which should be the key ({some})"
      yield Mistake("no key", text, number)
    elif not key.isascii() and key != key.encode(errors="replace").decode():
      yield Mistake("no text", f"key {key!r} is no Unicode text", number)
    elif first_line.setdefault(key, number) != number:
      text = f"key {key!r} already stands on line {first_line[key]}"
      yield Mistake("key again", text, number)
    else:
      yield key
