"""Recognizes the format of a file of events or of items, where the settings do not name it."""

from collections.abc import Mapping
from pathlib import Path

from mmesid_jax.ingest import amazon, compressed_lines, movielens, records

TABLE, MOVIELENS = "table", "movielens"


def events_format(path: Path, source: str, columns: Mapping[str, str], encoding: str = "") -> str:
  """Returns one of `settings.SOURCES`: `source` if it is named, else what the file looks like.

  A file with the column `columns["user"]` is a table. Raises UserError for a file that cannot be
  read.
  """
  if source:
    return source
  names = _field_names(path, encoding)
  if columns["user"] in names:
    return TABLE
  found = amazon.recognize_events(names)
  return found or (MOVIELENS if movielens.is_known(path, names, of_items=False) else TABLE)


def items_format(
  path: Path, source: str, events_source: str, columns: Mapping[str, str], encoding: str = ""
) -> str:
  """Returns the same for a file of items; `events_source` is the format of the events.

  It decides about lines that hold no field names, because they may be damaged.
  """
  if source:
    return source
  names = _field_names(path, encoding)
  if events_source == TABLE and columns["item"] in names:
    return TABLE
  if found := amazon.recognize_items(names):
    return found
  if columns["item"] in names:
    return TABLE
  if movielens.is_known(path, names, of_items=True):
    return MOVIELENS
  return TABLE if names or records.is_csv(path) else events_source


def _field_names(path: Path, encoding: str) -> list[str]:
  """Returns the names of the columns, or of the fields of the first line; of CSV its words."""
  if compressed_lines.file_format(path) == compressed_lines.PARQUET:
    return records.parquet_columns(path)
  if records.is_json_lines(path, encoding):
    return records.first_field_names(path, encoding)[1]
  _, line = next(compressed_lines.read_lines(path, encoding), (0, b""))
  text = line.decode("utf-8-sig", "replace").strip()
  return [name.strip('" ') for name in text.replace("\t", ",").replace(";", ",").split(",")]
