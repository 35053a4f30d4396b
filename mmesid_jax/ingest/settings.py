"""What a configuration of `prepare` may hold."""

from typing import Any

from ml_collections import ConfigDict

from mmesid_jax.errors import UserError
from mmesid_jax.ingest.catalogue import REQUIRABLE
from mmesid_jax.ingest.filters import DUPLICATES

SOURCES = ("amazon2014", "amazon2018", "amazon2023", "movielens", "table")


def default_settings() -> ConfigDict:
  """The configuration that configs/prepare.py hands out; every key with its default."""
  columns = {"user": "user", "item": "item", "time": "time", "rating": ""}
  details = {"title": "title", "brand": "", "categories": "", "description": "", "image": ""}
  return ConfigDict(
    {
      "source": "table",
      # files, with commas between them: reviews, ratings, or tables with a row an event; and those
      # that describe items
      "events": "",
      "metadata": "",
      # columns of a table, "" = it has none; without `time` a user's events are in order
      "columns": {**columns, **details},
      "delimiter": "",  # of a table; "" = comma, or tab in .tsv
      "header": "",  # "a,b,c": a table's columns, where its first line does not name them
      "max_bad_lines": 0,  # lines that cannot be read and are left out; one more is an error
      "min_rating": 0.0,  # events below, and those without one, are left out; 0 = none are
      "require": "",  # "title,image": of every item: title, brand, categories, description, image
      # left out: "exact", the same user, item and time again (without times none); "pair", the same
      # user and item; "keep" leaves out none
      "duplicates": "exact",
      "core": {"user": 5, "item": 5},  # each has at least so many events; 0 or 1 = no such filter
      "min_length": 3,  # of a user's sequence: shorter ones cannot be evaluated
      "tfds": False,  # a TensorFlow dataset too, in the folder `tfds` within the output; slow
    }
  )


def split_names(value: str) -> list[str]:
  """What stands between commas."""
  return [name.strip() for name in value.split(",") if name.strip()]


def check_settings(config: ConfigDict, *, described: bool) -> None:
  """Raises UserError, which names the key, for a value that cannot be. described: whether there is
  anything that describes items."""
  _one_of("source", config.source, SOURCES)
  _one_of("duplicates", config.duplicates, DUPLICATES)
  for name in split_names(config.require):
    _one_of("require", name, REQUIRABLE)
  for key in ("max_bad_lines", "min_length", "min_rating", "core.user", "core.item"):
    value: Any = config
    for part in key.split("."):
      value = value[part]
    if not value >= 0:
      raise UserError(f"--config.{key}={value}: expected a number >= 0")
  if split_names(config.require) and not described:
    raise UserError("--config.require: no file describes items; name one by --config.metadata")
  if config.source == "table":
    for name in ("user", "item"):
      if not config.columns[name]:
        raise UserError(f"--config.columns.{name}: expected the name of a column")
    if config.min_rating and not config.columns.rating:
      raise UserError("--config.min_rating: needs --config.columns.rating, the name of a column")
    for field in split_names(config.require):
      if not config.columns[field]:
        raise UserError(f"--config.require={field}: needs --config.columns.{field}")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    raise UserError(f"--config.{key}={value}: expected one of {', '.join(known)}")
