"""Reads items.jsonl: one JSON object per line, in the order of the item ids."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmesid_jax.data.folder.problems import Mistake, quote, read_json_lines, require_valid


class Item(NamedTuple):
  """Title and categories of an item."""

  title: str | None
  path: tuple[str, ...]  # of categories, from the general to the particular; () = none


UNKNOWN_ITEM = Item(None, ())


def read_items(path: Path) -> list[Item]:
  """Reads the items by id, [I]; entry 0 is the padding item. Raises UserError."""
  return [UNKNOWN_ITEM, *require_valid(path, scan_items(path))]


def has_titles(path: Path) -> bool:
  """Whether an item has a title; reads up to the first one. Raises UserError as scan_items does."""
  return any(isinstance(item, Item) and item.title for item in scan_items(path))


def read_item_objects(path: Path) -> list[dict[str, Any]]:
  """Reads the whole JSON object of every item, [I]; item i is entry i - 1. Raises UserError."""
  return list(require_valid(path, _scan_objects(path)))


def scan_items(path: Path) -> Iterator[Item | Mistake]:
  """Yields the item of every correct line, and every mistake in the others.

  Line n must be an object with `item_id` n; `title` a string or null; `categories` as in
  `Dataset.categories`. Raises UserError for a file that cannot be read.
  """
  for entry in _scan_objects(path):
    if isinstance(entry, Mistake):
      yield entry
    else:
      yield Item(entry.get("title") or None, _category_path(entry.get("categories")))


def _scan_objects(path: Path) -> Iterator[dict[str, Any] | Mistake]:
  """Yields the same as `scan_items`, with the whole object of every item."""
  number = 0
  for number, value in read_json_lines(path):
    mistakes = [value] if isinstance(value, Mistake) else list(_line_mistakes(number, value))
    yield from mistakes or [value]
  if not number:
    yield Mistake("empty", "is empty; expected one JSON object per item")


def _line_mistakes(number: int, value: object) -> Iterator[Mistake]:
  item = value if isinstance(value, dict) else {}
  if item.get("item_id") != number or item["item_id"] is True:
    shown = quote(json.dumps(item.get("item_id") if isinstance(value, dict) else value))
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
  """Returns the names in `categories`, () for none; None for an invalid value."""
  if isinstance(value, str):
    value = [value]
  if isinstance(value, list) and value and all(isinstance(names, list) for names in value):
    value = value[0]
  if value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
    return tuple(filter(None, value or ()))
  return None
