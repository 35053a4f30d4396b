"""What items.jsonl says of the items: one JSON object a line, in the order of the ids."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmesid_jax.data.folder.problems import Mistake, quote, read_json_lines, require_valid


class Item(NamedTuple):
  title: str | None
  path: tuple[str, ...]  # of categories; () = none


UNKNOWN_ITEM = Item(None, ())  # is known of the item


def read_items(path: Path) -> list[Item]:
  """Items by id, [I + 1]. Raises UserError for the first mistake."""
  return [UNKNOWN_ITEM, *require_valid(path, scan_items(path))]


def read_objects(path: Path) -> list[dict[str, Any]]:
  """All that stands of every item, [I]: item i is the one at i - 1. Raises UserError for the first
  mistake."""
  return list(require_valid(path, _objects(path)))


def scan_items(path: Path) -> Iterator[Item | Mistake]:
  """The item of every line that is in order, and every mistake of the others. Raises UserError for
  a file that cannot be read.

  Line n must be an object with item_id n; title a string; categories as Dataset.categories reads.
  """
  for found in _objects(path):
    if isinstance(found, Mistake):
      yield found
    else:
      yield Item(found.get("title") or None, _category_path(found.get("categories")))


def _objects(path: Path) -> Iterator[dict[str, Any] | Mistake]:
  """As `scan`, each item with all that stands of it."""
  number = 0
  for number, found in read_json_lines(path):
    mistakes = [found] if isinstance(found, Mistake) else list(_mistakes(number, found))
    yield from mistakes or [found]
  if not number:
    yield Mistake("empty", "is empty; expected one JSON object an item")


def _mistakes(number: int, found: object) -> Iterator[Mistake]:
  item = found if isinstance(found, dict) else {}
  if item.get("item_id") != number or item["item_id"] is True:
    shown = quote(json.dumps(item.get("item_id") if isinstance(found, dict) else found))
    text = f'expected an object with "item_id": {number}, the number of the line, found {shown}'
    yield Mistake("item_id", text, number)
  title = item.get("title")
  if title is not None and not isinstance(title, str):
    yield Mistake("title", f"title is {quote(json.dumps(title))}, not a string", number)
  if _category_path(item.get("categories")) is None:
    text = (
      f"categories is {quote(json.dumps(item['categories']))}; expected a list of names, from the "
      "general to the particular"
    )
    yield Mistake("categories", text, number)


def _category_path(value: object) -> tuple[str, ...] | None:
  """The names of `categories`, () for none; None when it is not what Dataset.categories reads."""
  if isinstance(value, str):
    value = [value]
  if isinstance(value, list) and value and all(isinstance(names, list) for names in value):
    value = value[0]
  if value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
    return tuple(filter(None, value or ()))
  return None
