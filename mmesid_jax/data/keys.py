"""Whose rows these are: the keys by which users and items are known outside, as a prepared dataset
keeps them.

Line n of items.jsonl describes item n and line n of users.jsonl the user on line n of
sequences.txt, each with its `key`.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmesid_jax.data.files import ITEMS, USERS
from mmesid_jax.data.mistakes import Mistake, json_lines, refuse

KEY = "key"


def item_keys(directory: str | os.PathLike, field: str = KEY) -> list[str]:
  """Keys of items 1..I, [I]: `field` of every line of items.jsonl. Raises UserError for a file that
  is missing, a line that has no such text, and a key that two lines share."""
  return _keys(Path(directory) / ITEMS, field)


def user_keys(directory: str | os.PathLike, field: str = KEY) -> list[str]:
  """Keys of the users, [U], in the order of sequences.txt: `field` of every line of users.jsonl.
  Raises UserError as `item_keys` does."""
  return _keys(Path(directory) / USERS, field)


def _keys(path: Path, field: str) -> list[str]:
  keys = []
  for key in scan(json_lines(path), field):
    if isinstance(key, Mistake):
      refuse(path, [key])
    keys.append(key)
  return keys


def scan(lines: Iterable[tuple[int, object]], field: str = KEY) -> Iterator[str | Mistake]:
  """The key of every one of `mistakes.json_lines`, or what is wrong with the line."""
  first_line: dict[str, int] = {}
  for number, found in lines:
    if isinstance(found, Mistake):
      yield found
      continue
    key = found.get(field) if isinstance(found, dict) else None
    if not isinstance(key, str):
      some = ", ".join(sorted(found)[:8]) if isinstance(found, dict) else type(found).__name__
      text = f"no text under {field!r}, which should be the key ({some})"
      yield Mistake("no key", text, number)
    elif first_line.setdefault(key, number) != number:
      text = f"key {key!r} already stands on line {first_line[key]}"
      yield Mistake("key again", text, number)
    else:
      yield key
