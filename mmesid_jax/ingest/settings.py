"""The settings of `prepare`: their defaults, meanings and checks."""

import codecs
import csv
from typing import Any

from ml_collections import ConfigDict

from mmesid_jax.errors import UserError
from mmesid_jax.ingest.catalogue import REQUIRABLE

DUPLICATES = ("keep", "exact", "pair")
# options of csv.reader
QUOTING = {
  "double": {},
  "backslash": {"escapechar": "\\"},
  "none": {"quoting": csv.QUOTE_NONE},
}
TIES = ("file", "hash")
SOURCES = ("amazon2014", "amazon2018", "amazon2023", "movielens", "table")


def default_settings() -> ConfigDict:
  """Returns the configuration of configs/prepare.py: every key with its default."""
  columns = {"user": "user", "item": "item", "time": "time", "rating": ""}
  details = {"title": "title", "brand": "", "categories": "", "description": "", "image": ""}
  return ConfigDict(
    {
      "events": "",  # files of reviews, ratings, or one row per event; separated by commas
      "metadata": "",  # files that describe items, separated by commas
      # format of the events, and of the metadata: amazon2014, amazon2018, amazon2023, movielens,
      # table; "" = recognized by the names of files and fields
      "source": "",
      "metadata_source": "",
      # names of a table's columns, or of the fields in JSON lines; "" = there is none. Without
      # `time`, the events of a user must be in order.
      "columns": {**columns, **details},
      "delimiter": "",  # of a CSV table; "" = comma, or tab in .tsv
      # of a CSV table: "double" = a field may be in quotation marks, and marks in it are doubled;
      # "backslash" = or have a backslash before them, as a backslash has; "none" = a quotation mark
      # is a character as any other; "" = none if a tab separates the fields, else double
      "quoting": "",
      # of text files, as latin-1 or cp1252; "" = UTF-8. A byte-order mark, as in UTF-16, goes first
      "encoding": "",
      "header": "",  # "a,b,c": names of a CSV table's columns if its first line has no names
      "max_bad_lines": 0,  # this number of lines that cannot be read is left out; more is an error
      "min_rating": 0.0,  # minimum rating of an event; 0 keeps events without a rating too
      # fields that every item must have, as "title,image": title, brand, categories, description,
      # image
      "require": "",
      # "exact" removes events with the same user, item and time as an earlier one (none without
      # times); "pair" those with the same user and item; "keep" removes none
      "duplicates": "exact",
      # order of a user's events at the same time: "file" = as in the files; "hash" = by a hash of
      # the keys of user and item, the same for any order of the files
      "ties": "file",
      "core": {"user": 5, "item": 5},  # minimum number of events of each; 0 or 1 = no filter
      "min_length": 3,  # minimum number of a user's events; shorter sequences are not evaluated
      "tfds": False,  # also write a TensorFlow dataset to the folder `tfds` in the output; slow
    }
  )


def split_names(value: str) -> list[str]:
  """Splits a value at its commas."""
  return [name.strip() for name in value.split(",") if name.strip()]


def check_settings(config: ConfigDict, *, described: bool) -> None:
  """Raises UserError, which names the key, for an invalid value.

  described: whether there is a file or table that describes items.
  """
  _check_one_of("source", config.source, ("", *SOURCES))
  _check_one_of("metadata_source", config.metadata_source, ("", *SOURCES))
  _check_one_of("duplicates", config.duplicates, DUPLICATES)
  _check_one_of("quoting", config.quoting, ("", *QUOTING))
  _check_encoding(config.encoding)
  _check_one_of("ties", config.ties, TIES)
  for name in split_names(config.require):
    _check_one_of("require", name, REQUIRABLE)
  for key in ("max_bad_lines", "min_length", "min_rating", "core.user", "core.item"):
    value: Any = config
    for part in key.split("."):
      value = value[part]
    if not value >= 0:
      raise UserError(f"--config.{key}={value}: expected a number >= 0")
  if not described:
    for key in ("require", "metadata_source"):
      if config[key]:
        raise UserError(f"--config.{key}: no file describes items; name one by --config.metadata")
  for name in ("user", "item"):
    if not config.columns[name]:
      raise UserError(f"--config.columns.{name}: expected the name of a column or field")
  roles = {}
  for name in ("user", "item", "time", "rating"):
    column = config.columns[name]
    if column and roles.setdefault(column, name) != name:
      raise UserError(
        f"--config.columns.{name}={column}: is the column of {roles[column]}, too; name another"
      )


def check_event_columns(config: ConfigDict) -> None:
  """Raises UserError for a setting that a table of events has no column for."""
  if config.ties == "hash" and not config.columns.time:
    raise UserError("--config.ties=hash: needs --config.columns.time, the name of a column")
  if config.min_rating and not config.columns.rating:
    raise UserError("--config.min_rating: needs --config.columns.rating, the name of a column")


def check_item_columns(config: ConfigDict) -> None:
  """Raises UserError for a setting that a table of items has no column for."""
  for field in split_names(config.require):
    if not config.columns[field]:
      raise UserError(f"--config.require={field}: needs --config.columns.{field}")


def _check_one_of(key: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    shown = ", ".join(filter(None, known))
    raise UserError(f"--config.{key}={value}: expected one of {shown}")


def _check_encoding(name: str) -> None:
  try:
    line = "\n".encode(name or "utf-8")  # refuses what is no encoding of text, as base64
    codecs.getincrementaldecoder(name or "utf-8")("surrogateescape").decode(line)  # idna, punycode
  except (LookupError, ValueError):
    raise UserError(
      f"--config.encoding={name}: expected an encoding that Python knows, as latin-1 or utf-16"
    ) from None
