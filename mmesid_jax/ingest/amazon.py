"""Reads Amazon reviews and item metadata as published in 2014, 2018 and 2023.

The files are JSON lines, lines in Python's notation (metadata of 2014), or Parquet.

https://jmcauley.ucsd.edu/data/amazon, https://nijianmo.github.io/amazon,
https://amazon-reviews-2023.github.io
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import events
from mmesid_jax.ingest.catalogue import Item
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.records import read_records
from mmesid_jax.ingest.tables import TableLayout, event_rows
from mmesid_jax.ingest.web_text import plain_text


class _Review2014(Struct):  # 2018 has the same fields
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
  categories: Any = None  # 2014: a list of paths; the first counts
  category: list | None = None  # 2018
  description: str | list | None = None
  images: str | list | None = field(name="imUrl", default=None)  # 2014
  large_images: str | list | None = field(name="imageURLHighRes", default=None)  # 2018
  small_images: str | list | None = field(name="imageURL", default=None)


class _Item2023(Struct):
  key: str = field(name="parent_asin")
  title: str | None = None
  brand: str | None = field(name="store", default=None)
  categories: list | None = None
  description: str | list | None = None
  images: list | dict | None = None


REVIEWS = {"amazon2014": _Review2014, "amazon2018": _Review2014, "amazon2023": _Review2023}
ITEMS = {"amazon2014": _Item2014, "amazon2018": _Item2014, "amazon2023": _Item2023}
# Ratings without reviews, CSV files.
RATING_COLUMNS = {"user": "user", "item": "item", "time": "time", "rating": "rating"}
RATINGS = {
  "amazon2014": TableLayout(RATING_COLUMNS, header=("user", "item", "rating", "time")),
  "amazon2018": TableLayout(RATING_COLUMNS, header=("item", "user", "rating", "time")),
  "amazon2023": TableLayout(
    {"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"}
  ),
}
ASIN = 10  # characters; the keys of users have more
SIZES = ("hi_res", "large", "thumb")  # of the images of 2023, best first


def recognize_events(names: Sequence[str]) -> str:
  """Returns the source of events with these fields, "" for none; 2018 has the fields of 2014."""
  if {"reviewerID", "asin", "unixReviewTime"} <= {*names}:
    return "amazon2014"
  return "amazon2023" if {"user_id", "parent_asin", "timestamp"} <= {*names} else ""


def recognize_items(names: Sequence[str]) -> str:
  """Returns the source of items with these fields, "" for none."""
  if "parent_asin" in names:
    return "amazon2023"
  if "asin" in names:
    return "amazon2018" if {"category", "imageURL"} & {*names} else "amazon2014"
  return ""


def read_ratings(
  source: str, path: Path, bad: BadLines, encoding: str = ""
) -> Iterator[events.Row]:
  """Yields the same as `read_reviews` from a CSV file of ratings.

  Raises UserError as `tables.event_rows` does, and if items stand where users are expected.
  """
  layout = dataclasses.replace(RATINGS[source], encoding=encoding)
  for number, row in enumerate(event_rows(path, layout, bad)):
    user, item = row[:2]
    if number == 0 and len(user) == ASIN < len(item):
      other = "amazon2018" if source == "amazon2014" else "amazon2014"
      raise UserError(
        f"{path}: {user!r} is an item and {item!r} a user, but files of {source} have them the "
        f"other way round; try --config.source={other}"
      )
    yield row


def read_reviews(
  source: str, path: Path, bad: BadLines, encoding: str = ""
) -> Iterator[events.Row]:
  """Yields user key, item key, time and rating of every review; bad lines go to `bad`.

  Times are as `events.parse_time` has them. Raises UserError as `read_records` does.
  """
  for number, review in read_records(path, REVIEWS[source], bad, encoding):
    try:
      yield (
        events.parse_key(review.user),
        events.parse_key(review.item),
        events.parse_time(review.time),
        events.parse_rating(review.rating),
      )
    except ValueError as error:
      bad.add(path, number, error)


def read_metadata(source: str, path: Path, bad: BadLines, encoding: str = "") -> Iterator[Item]:
  """Yields the metadata of every item; bad lines go to `bad`.

  Raises UserError as `read_records` does.
  """
  for number, record in read_records(path, ITEMS[source], bad, encoding):
    categories = record.categories or getattr(record, "category", None)
    if isinstance(categories, list) and categories and isinstance(categories[0], list):
      categories = categories[0]
    sizes = (getattr(record, name, None) for name in ("images", "large_images", "small_images"))
    images = next(filter(None, map(_image_urls, sizes)), None)
    try:
      yield Item(
        key=record.key,
        title=plain_text(record.title),
        brand=plain_text(record.brand),
        categories=_plain_texts(categories) or None,
        description=" ".join(_plain_texts(record.description)) or None,
        images=images,
      )
    except ValueError as error:
      bad.add(path, number, error)


def _plain_texts(value: Any) -> list[str]:
  """Returns the plain texts of a text or a list, without those of which nothing is left."""
  return [*filter(None, map(plain_text, _list_texts(value)))]


def _list_texts(value: Any) -> list[str]:
  """Returns the texts in a value that may be a text, a list, or anything else."""
  parts = value if isinstance(value, list) else [value]
  return [part for part in parts if isinstance(part, str) and part.strip()]


def _image_urls(value: Any) -> list[str]:
  """Returns one address per image, in its best size.

  `value` is a text, a list of texts, a list of objects with a key for every size (2023), or an
  object with a list for every size (Parquet of 2023).
  """
  if isinstance(value, Mapping):
    columns = [value[s] for s in SIZES if isinstance(value.get(s), list)]
    value = [list(sizes) for sizes in zip(*columns, strict=False)]
  elif isinstance(value, list):
    value = [[v.get(s) for s in SIZES] if isinstance(v, Mapping) else [v] for v in value]
  else:
    value = [[value]]
  best = (next(iter(_list_texts(sizes)), None) for sizes in value)
  return [url for url in best if url]
