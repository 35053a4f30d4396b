"""Keys: the external ids of users and items, as a dataset folder keeps them.

Line n of items.jsonl has the `key` of item n; line n of users.jsonl has that of the user on line n
of sequences.txt.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmesid_jax.data.folder.file_names import ITEMS, USERS
from mmesid_jax.data.folder.problems import Mistake, read_json_lines, require_valid
from mmesid_jax.errors import UserError
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.files.readers import open_to_read, parse_json

KEY = "key"


def item_keys(directory: str | os.PathLike, field: str = KEY) -> list[str]:
  """Reads the keys of items 1..I-1, [I - 1]: `field` of every line of items.jsonl.

  Raises UserError for a missing file, a line without such a text, and a key on two lines.
  """
  return _read_keys(Path(directory) / ITEMS, field)


def user_keys(directory: str | os.PathLike, field: str = KEY) -> list[str]:
  """Reads the keys of the users in the order of sequences.txt, [U]: `field` of users.jsonl.

  Raises UserError as `item_keys` does.
  """
  return _read_keys(Path(directory) / USERS, field)


def kept_item_keys(directory: str | os.PathLike, field: str | None = None) -> list[str] | None:
  """Reads `item_keys`, or returns None for a folder without keys.

  That is a folder without items.jsonl, or with no `key` on its first line. If `field` is given, it
  must be there.
  """
  has_keys = field or has_item_keys(directory)
  return _read_keys(Path(directory) / ITEMS, field or KEY) if has_keys else None


def has_item_keys(directory: str | os.PathLike) -> bool:
  """Whether the folder has items with keys, which need not be valid."""
  return _has_keys(Path(directory) / ITEMS)


def item_keys_sha256(file: Path) -> str | None:
  """The digest of the keys in an items.jsonl, None where no line has one. A key that is missing or
  again on a later line counts as none."""
  entries = scan_keys(read_json_lines(file))
  found = [entry if isinstance(entry, str) else None for entry in entries]
  return json_sha256(found) if any(found) else None


def kept_user_keys(directory: str | os.PathLike, users: int) -> list[str] | None:
  """Reads `user_keys`, or returns None for a folder without keys.

  Raises UserError as `item_keys` does, and when the number of keys is not `users`.
  """
  path = Path(directory) / USERS
  if not _has_keys(path):
    return None
  keys = _read_keys(path, KEY)
  if len(keys) != users:
    raise UserError(f"{path}: {len(keys)} lines; expected one for each of the {users} users")
  return keys


def _has_keys(path: Path) -> bool:
  """Whether the file exists and its first line has a key, which need not be valid."""
  if not path.exists():
    return False
  with open_to_read(path) as file:
    line = file.readline()
  try:
    first = parse_json(line)
  except ValueError:
    return True  # whoever reads the whole file says what is wrong with it
  return not isinstance(first, dict) or KEY in first


def _read_keys(path: Path, field: str) -> list[str]:
  return list(require_valid(path, scan_keys(read_json_lines(path), field)))


def scan_keys(lines: Iterable[tuple[int, object]], field: str = KEY) -> Iterator[str | Mistake]:
  """Yields the key of every line of `read_json_lines`, or the mistake in it."""
  first_line: dict[str, int] = {}
  for number, value in lines:
    if isinstance(value, Mistake):
      yield value
      continue
    key = value.get(field) if isinstance(value, dict) else None
    key = str(key) if type(key) is int else key
    if not isinstance(key, str):
      present = ", ".join(sorted(value)[:8]) if isinstance(value, dict) else type(value).__name__
      yield Mistake("no key", f"no text under {field!r} as the key (found {present})", number)
    elif first_line.setdefault(key, number) != number:
      text = f"key {key!r} is already on line {first_line[key]}"
      yield Mistake("key again", text, number)
    else:
      yield key
