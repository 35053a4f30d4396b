"""What is known of an item besides its events."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """None where the source says nothing."""

  key: str
  title: str | None = None
  brand: str | None = None
  categories: list[str] | None = None  # a path, from the general to the particular
  description: str | None = None
  images: list[str] | None = None  # addresses or paths, best first

  def has(self, field: str) -> bool:
    """Whether the source says anything of it, by the singular: "title", "image", ..."""
    return bool(getattr(self, {"image": "images"}.get(field, field)))


REQUIRABLE = ("title", "brand", "categories", "description", "image")


class Catalogue:
  """Items by key, of those that are asked for; the first of several of one key counts."""

  def __init__(self, keys: Iterable[str]):
    self._wanted = frozenset(keys)
    self._items: dict[str, Item] = {}
    self.duplicates = 0  # items that came again

  def add(self, items: Iterable[Item]) -> None:
    for item in items:
      if item.key in self._items:
        self.duplicates += 1
      elif item.key in self._wanted:
        self._items[item.key] = item

  def __getitem__(self, key: str) -> Item:
    """The item, with nothing but its key where the source does not hold it."""
    return self._items.get(key) or Item(key)

  def __contains__(self, key: str) -> bool:
    return key in self._items
