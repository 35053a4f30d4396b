"""How a prepared dataset writes its lines, so that whoever writes them writes the same bytes."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mmesid_jax.data.folder.keys import KEY

FIELDS = ("title", "brand", "categories", "description", "images")  # null where nothing is known


def sequence_line(user: int, items: Iterable[int]) -> bytes:
  """Of sequences.txt."""
  return f"{user} {' '.join(map(str, items))}\n".encode()


def user_line(user: int, key: str) -> bytes:
  """Of users.jsonl."""
  return _json_line({"user_id": user, KEY: key})


def item_line(item: int, key: str, described: Mapping[str, Any]) -> bytes:
  """Of items.jsonl; `described` holds FIELDS."""
  return _json_line({"item_id": item, KEY: key, **{name: described[name] for name in FIELDS}})


def _json_line(record: dict) -> bytes:
  # half characters, which some titles hold, become question marks
  return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
