"""Turns raw events into a dataset folder: the work of the command `prepare`."""

import dataclasses
import json
import os
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmesid_jax.config.command_line import nearest_name
from mmesid_jax.config.schema import flatten
from mmesid_jax.data.folder.writer import FIELDS, write_keyed_folder
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder, follow_links
from mmesid_jax.ingest import (
  amazon,
  filters,
  formats,
  ingest_report,
  movielens,
  records,
  statistics,
  tables,
)
from mmesid_jax.ingest.catalogue import Catalogue, Item
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.events import Events, Row, collect_events
from mmesid_jax.ingest.settings import (
  check_event_columns,
  check_item_columns,
  check_settings,
  default_settings,
  split_names,
)


def prepare_folder(config: ConfigDict, output: Path) -> None:
  """Reads the files that the configuration names and writes the folder `output`.

  The folder appears complete or not at all. Raises UserError.
  """
  check_settings(config, described=bool(split_names(config.metadata)))
  if not split_names(config.events):
    raise UserError("--config.events is missing; expected the files that hold events")
  _check_output(output)
  bad = BadLines(config.max_bad_lines)
  events, items, format_of = read_raw_files(config, bad)
  _filter_and_write(config, events, items, output, bad, format_of)


def read_raw_files(
  config: ConfigDict, bad: BadLines
) -> tuple[Events, Iterator[Item] | None, dict[str, str]]:
  """Returns the events, the items (None without metadata), and the format of every file by name.

  Bad lines go to `bad`. Raises UserError.
  """
  events_formats, items_formats = _file_formats(config)
  events = collect_events(_read_events(config, events_formats, bad))
  items = _read_metadata(config, items_formats, bad) if items_formats else None
  return events, items, {str(path): name for path, name in (*events_formats, *items_formats)}


def from_dataframe(
  events_frame: Mapping[str, Iterable],
  output: str | os.PathLike,
  *,
  items_frame: Mapping[str, Iterable] | None = None,
  settings: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
  """Writes a dataset folder from tables in memory, as the command `prepare` does from files.

  Args:
    events_frame: one row per event; a data frame of pandas or Polars, or lists by name.
    output: the folder to write; it must not exist.
    items_frame: one row per item, or None.
    settings: those that differ from `ingest.settings.default_settings`, as {"columns.user":
      "customer", "core.user": 2}.

  Raises UserError.
  """
  config = default_settings()
  keys = flatten(config)
  for key in settings:
    if key not in keys:
      raise UserError(f"settings: no key {key!r}; did you mean {nearest_name(key, [*keys])!r}?")
  try:
    config.update_from_flattened_dict(dict(settings))
  except TypeError as error:
    raise UserError(f"settings: {error}") from None
  for key in ("source", "metadata_source"):
    if config[key] not in ("", "table"):
      raise UserError(f"settings: {key}={config[key]}: a data frame is a table")
  check_settings(config, described=items_frame is not None)
  check_event_columns(config)
  check_item_columns(config)
  _check_output(Path(output))
  bad = BadLines(config.max_bad_lines)
  layout = tables.TableLayout(config.columns)
  rows = tables.event_rows(events_frame, layout, bad)
  events = collect_events([("the data frame", rows)])
  items = None if items_frame is None else tables.item_rows(items_frame, layout, bad)
  _filter_and_write(config, events, items, Path(output), bad)


def _filter_and_write(
  config: ConfigDict,
  events: Events,
  items: Iterable[Item] | None,
  output: Path,
  bad: BadLines,
  format_of: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
  bad.check()
  if not len(events):
    raise UserError("there are no events to prepare")
  catalogue = Catalogue(events.item_keys)
  catalogue.add(items or ())
  bad.check()
  if items is not None and not catalogue:
    _refuse_unmatched(events.item_keys[0], catalogue.unused_key)
  counts, advice = {"read": events.counts()}, []
  steps = filters.filter_steps(config, catalogue)
  for name, events, of_step in filters.apply_filters(events, steps):  # noqa: B020
    counts[name] = events.counts()
    advice += [of_step] if of_step else []
  events = events.renumber().sort(config.ties)
  figures = {
    "settings": config.to_dict(),
    "formats": dict(format_of),
    "bad lines": {"count": bad.count, "first": bad.quoted},
    "rows that span several lines": {"count": bad.long_rows, "first": bad.first_long_row},
    "items described more than once": catalogue.duplicates,
    "steps": counts,
    "advice": advice,
    "dataset": statistics.dataset_statistics(events, catalogue),
  }
  with atomic_folder(output) as folder:
    write_events(folder, events, catalogue)
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    (folder / "statistics.json").write_text(text, encoding="utf-8")
    page = ingest_report.report_page(output.name, figures, events)
    (folder / "report.html").write_text(page, encoding="utf-8")
    if config.tfds:
      write_tfds(folder)
  reporter.info(ingest_report.report_text(output, figures))


def _refuse_unmatched(event_key: str, described_key: str | None) -> None:
  if described_key is None:
    raise UserError("--config.metadata: describes no item")
  raise UserError(
    f"--config.metadata: describes none of the items of the events; an event has the item "
    f"{event_key!r}, a description {described_key!r}; the keys must be the same texts"
  )


def write_events(folder: Path, events: Events, catalogue: Catalogue) -> None:
  """Writes sequences.txt, users.jsonl, items.jsonl and, if there are times, times.npy.

  The events are sorted as by `Events.sort`, and their users and items are numbered without
  gaps. Raises UserError when the disk refuses a file.
  """
  write_keyed_folder(
    folder,
    items=events.item_E + 1,
    offsets=np.concatenate([[0], np.cumsum(np.bincount(events.user_E))]),
    times=events.time_E,
    user_keys=events.user_keys,
    item_keys=events.item_keys,
    descriptions=(
      {name: getattr(catalogue[key], name) for name in FIELDS} for key in events.item_keys
    ),
  )


def write_tfds(folder: Path, beam: str | None = None) -> None:
  """Writes the TensorFlow dataset folder/tfds. Raises UserError as `write_tfds_dataset` does."""
  from mmesid_jax.data.folder import tfds_builder  # the import takes seconds

  tfds_builder.write_tfds_dataset(folder, beam)


Formats = list[tuple[Path, str]]  # of files, in the order in which they are read


def _file_formats(config: ConfigDict) -> tuple[Formats, Formats]:
  """Returns the formats of the files of events and of items.

  Raises UserError for a missing file, before anything is read in whole, and for columns that the
  settings need and do not name.
  """
  events, items = [], []
  for path in map(Path, split_names(config.events)):
    name = formats.events_format(path, config.source, config.columns, config.encoding)
    events.append((path, name))
  for path in map(Path, split_names(config.metadata)):
    name = formats.items_format(
      path, config.metadata_source, events[0][1], config.columns, config.encoding
    )
    items.append((path, name))
  if formats.TABLE in dict(events).values():
    check_event_columns(config)
  if formats.TABLE in dict(items).values():
    check_item_columns(config)
  return events, items


def _read_events(
  config: ConfigDict, files: Formats, bad: BadLines
) -> Iterator[tuple[Path, Iterator[Row]]]:
  for path, name in files:
    if name not in amazon.REVIEWS:
      layout = _table_layout(config, path, name, of_items=False)
      yield path, tables.event_rows(path, layout, bad)
    elif records.is_csv(path):
      yield path, amazon.read_ratings(name, path, bad, config.encoding)
    else:
      yield path, amazon.read_reviews(name, path, bad, config.encoding)


def _read_metadata(config: ConfigDict, files: Formats, bad: BadLines) -> Iterator[Item]:
  for path, name in files:
    if name in amazon.ITEMS:
      yield from amazon.read_metadata(name, path, bad, config.encoding)
    else:
      yield from tables.item_rows(path, _table_layout(config, path, name, of_items=True), bad)


def _table_layout(
  config: ConfigDict, path: Path, name: str, *, of_items: bool
) -> tables.TableLayout:
  if name == formats.MOVIELENS:
    layout = movielens.file_layout(path, of_items=of_items)
    changes = {"encoding": config.encoding, "fallback": ""} if config.encoding else {}
    return dataclasses.replace(layout, **changes)
  header = () if of_items else tuple(split_names(config.header))
  return tables.TableLayout(
    config.columns, config.delimiter, header, encoding=config.encoding, quoting=config.quoting
  )


def _check_output(output: Path) -> None:
  """Raises UserError if the folder cannot be made, before anything is read."""
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(f"--output={output}: exists; name another, or delete it")
  above = next(folder for folder in follow_links(output).parents if folder.exists())
  if not above.is_dir():
    raise UserError(f"--output={output}: {above} is a file; expected a folder; name another")
  if not os.access(above, os.W_OK):
    raise UserError(f"--output={output}: no permission to write in {above}")
