"""Amazon's reviews and their items as published in 2014, 2018 and 2023: JSON lines, lines in
Python's notation (metadata of 2014), or Parquet.

https://jmcauley.ucsd.edu/data/amazon, https://nijianmo.github.io/amazon,
https://amazon-reviews-2023.github.io
"""

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from mmesid_jax.ingest import events
from mmesid_jax.ingest.catalogue import Item
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.records import read_records


class _Review2014(Struct):  # of 2018 as well
  user: str = field(name="reviewerID")
  item: str = field(name="asin")
  time: int | float | str = field(name="unixReviewTime")
  rating: float | None = field(name="overall", default=None)


class _Review2023(Struct):
  user: str = field(name="user_id")
  item: str = field(name="parent_asin")
  time: int | float | str = field(name="timestamp")
  rating: float | None = field(name="rating", default=None)


class _Item2014(Struct):
  key: str = field(name="asin")
  title: str | None = None
  brand: str | None = None
  categories: Any = None  # a list of paths, of which the first counts
  description: str | list | None = None
  images: str | list | None = field(name="imUrl", default=None)


class _Item2018(Struct):
  key: str = field(name="asin")
  title: str | None = None
  brand: str | None = None
  categories: list | None = field(name="category", default=None)
  description: str | list | None = None
  images: str | list | None = field(name="imageURLHighRes", default=None)
  small_images: str | list | None = field(name="imageURL", default=None)


class _Item2023(Struct):
  key: str = field(name="parent_asin")
  title: str | None = None
  brand: str | None = field(name="store", default=None)
  categories: list | None = None
  description: str | list | None = None
  images: list | dict | None = None


REVIEWS = {"amazon2014": _Review2014, "amazon2018": _Review2014, "amazon2023": _Review2023}
ITEMS = {"amazon2014": _Item2014, "amazon2018": _Item2018, "amazon2023": _Item2023}
SIZES = ("hi_res", "large", "thumb")  # of an image of 2023, best first


def read_reviews(source: str, path: Path, bad: BadLines) -> Iterator[tuple[str, str, int, float]]:
  """User's key, item's key, seconds and rating of every review. Raises UserError as
  `records.records` does."""
  for number, review in read_records(path, REVIEWS[source], bad):
    try:
      yield (
        events.parse_key(review.user),
        events.parse_key(review.item),
        events.parse_time(review.time),
        events.parse_rating(review.rating),
      )
    except ValueError as error:
      bad.add(path, number, error)


def read_metadata(source: str, path: Path, bad: BadLines) -> Iterator[Item]:
  """What the metadata say of every item. Raises UserError as `records.records` does."""
  for _, found in read_records(path, ITEMS[source], bad):
    categories = found.categories
    if isinstance(categories, list) and categories and isinstance(categories[0], list):
      categories = categories[0]
    images = _images(found.images) or _images(getattr(found, "small_images", None))
    yield Item(
      key=found.key,
      title=_text(found.title),
      brand=_text(found.brand),
      categories=[*map(_text, _texts(categories))] or None,
      description=_text(" ".join(_texts(found.description))),
      images=images or None,
    )


def _text(value: str | None) -> str | None:
  """Without HTML's entities and double spaces; None for nothing."""
  return " ".join(html.unescape(value).split()) or None if value else None


def _texts(value: Any) -> list[str]:
  """The texts of a value that is one, a list of them, or neither."""
  parts = value if isinstance(value, list) else [value]
  return [part for part in parts if isinstance(part, str) and part.strip()]


def _images(value: Any) -> list[str]:
  """Addresses of images: of a text, a list of texts, 2023's list of objects (a size each) or the
  object of lists that its Parquet files hold."""
  if isinstance(value, Mapping):
    columns = [value[s] for s in SIZES if isinstance(value.get(s), list)]
    value = [list(sizes) for sizes in zip(*columns, strict=False)]
  elif isinstance(value, list):
    value = [[v.get(s) for s in SIZES] if isinstance(v, Mapping) else [v] for v in value]
  else:
    value = [[value]]
  best = (next(iter(_texts(sizes)), None) for sizes in value)
  return [url for url in best if url]
