"""What a prepared dataset says of its items, every field of it."""

import json
import os
from pathlib import Path
from typing import Any

from mmesid_jax.data.dataset import ITEMS, read_bytes
from mmesid_jax.errors import UserError


def read_items(directory: str | os.PathLike) -> list[dict[str, Any]]:
  """The objects of items.jsonl, [I]; item i is the one at i - 1.

  Raises UserError for a missing or empty file and for line n without `"item_id": n`.
  """
  path = Path(directory) / ITEMS
  items = []
  for number, line in enumerate(read_bytes(path).splitlines(), start=1):
    try:
      item = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UserError(f"{path}:{number}: not JSON ({error}); expected one object a line") from None
    if not isinstance(item, dict) or item.get("item_id") != number:
      raise UserError(f'{path}:{number}: expected an object with "item_id": {number}')
    items.append(item)
  if not items:
    raise UserError(f"{path}: is empty; expected one JSON object an item")
  return items
