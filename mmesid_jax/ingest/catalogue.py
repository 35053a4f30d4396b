"""Descriptions of items by key."""

import dataclasses
from collections.abc import Iterable

from mmesid_jax.files.unicode_text import NO_UNICODE, is_unicode


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """Description of an item; None for what the source does not have.

  Raises ValueError for a text that is not Unicode.
  """

  key: str
  title: str | None = None
  brand: str | None = None
  categories: list[str] | None = None  # a path, from the general to the particular
  description: str | None = None
  images: list[str] | None = None  # addresses or paths, best first

  def __post_init__(self):
    for name in self.__slots__:
      if not is_unicode(getattr(self, name)):
        raise ValueError(f"{name} {NO_UNICODE}")

  def has(self, field: str) -> bool:
    """Whether a field of REQUIRABLE is known: "title", "image", ..."""
    return bool(getattr(self, {"image": "images"}.get(field, field)))


REQUIRABLE = ("title", "brand", "categories", "description", "image")


class Catalogue:
  """Descriptions of a given set of items by key; the first description of a key counts."""

  def __init__(self, keys: Iterable[str]):
    self._wanted = frozenset(keys)
    self._items: dict[str, Item] = {}
    self.duplicates = 0  # descriptions of an item that has one already
    self.unused_key: str | None = None  # of the first description that was not asked for

  def add(self, items: Iterable[Item]) -> None:
    """Adds the descriptions of items whose keys were given."""
    for item in items:
      if item.key in self._items:
        self.duplicates += 1
      elif item.key in self._wanted:
        self._items[item.key] = item
      elif self.unused_key is None:
        self.unused_key = item.key

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, key: str) -> Item:
    """Returns the description of an item; it is empty for an item without one."""
    return self._items.get(key) or Item(key)

  def __contains__(self, key: str) -> bool:
    return key in self._items
