"""Whose rows these are: the keys by which users and items are known outside, as a prepared dataset
keeps them.

Line n of items.jsonl describes item n and line n of users.jsonl the user on line n of
sequences.txt, each with its `key`.
"""

import json
import os
from pathlib import Path

from mmesid_jax.data.dataset import ITEMS, read_bytes
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


def _keys(path: Path, field: str) -> list[str]:
  keys: list[str] = []
  lines: dict[str, int] = {}
  for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
    if not line:
      continue
    try:
      found = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UserError(f"{path}:{number}: not JSON ({error}); expected one object a line") from None
    key = found.get(field) if isinstance(found, dict) else None
    if not isinstance(key, str):
      some = ", ".join(sorted(found)[:8]) if isinstance(found, dict) else type(found).__name__
      raise UserError(f"{path}:{number}: no text under {field!r}, which should be the key ({some})")
    if first := lines.get(key):
      raise UserError(f"{path}:{number}: key {key!r} already stands on line {first}")
    lines[key] = number
    keys.append(key)
  return keys
