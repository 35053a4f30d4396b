"""What the command `prepare` does: raw files in, a dataset folder out."""

import functools
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
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder
from mmesid_jax.ingest import amazon, filters, ingest_report, movielens, statistics, tables
from mmesid_jax.ingest.catalogue import Catalogue, Item
from mmesid_jax.ingest.compressed_lines import BadLines, file_format
from mmesid_jax.ingest.events import Events, collect_events
from mmesid_jax.ingest.settings import check_settings, default_settings, split_names


def prepare_folder(config: ConfigDict, output: Path) -> None:
  """Reads what the configuration names and writes the folder `output`, which appears complete or
  not at all. Raises UserError."""
  check_settings(config, described=bool(split_names(config.metadata)))
  if not split_names(config.events):
    raise UserError("--config.events is missing; expected the files that hold events")
  _check_output(output)
  for path in split_names(config.metadata):
    file_format(Path(path))  # before all events are read
  bad = BadLines(config.max_bad_lines)
  found = collect_events(_events(config, bad))
  _write(config, found, _items(config, bad), output, bad)


def from_dataframe(
  events_frame: Mapping[str, Iterable],
  output: str | os.PathLike,
  *,
  items_frame: Mapping[str, Iterable] | None = None,
  settings: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
  """The same from tables in memory: data frames of pandas or Polars, or lists by name.

  settings: keys of raw.settings.default_settings that differ, as {"columns.user": "customer",
  "core.user": 2}. Raises UserError.
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
  if config.source != "table":
    raise UserError(f"settings: source={config.source}: a data frame is a table")
  check_settings(config, described=items_frame is not None)
  _check_output(Path(output))
  bad = BadLines(config.max_bad_lines)
  layout = tables.TableLayout(config.columns)
  found = collect_events(tables.event_rows(events_frame, layout, bad))
  items = [] if items_frame is None else tables.item_rows(items_frame, layout, bad)
  _write(config, found, items, Path(output), bad)


def _write(
  config: ConfigDict, found: Events, items: Iterable[Item], output: Path, bad: BadLines
) -> None:
  bad.check()
  if not len(found):
    raise UserError("no events: nothing to prepare")
  catalogue = Catalogue(found.item_keys)
  catalogue.add(items)
  bad.check()
  counts = {"read": found.counts()}
  for name, left in filters.apply_filters(found, _steps(config, catalogue)):
    counts[name], found = left.counts(), left
  found = found.renumbered().in_order()
  figures = {
    "settings": config.to_dict(),
    "bad lines": {"count": bad.count, "first": bad.quoted},
    "items described more than once": catalogue.duplicates,
    "steps": counts,
    "dataset": statistics.dataset_statistics(found, catalogue),
  }
  with atomic_folder(output) as folder:
    write_events(folder, found, catalogue)
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    (folder / "statistics.json").write_text(text, encoding="utf-8")
    page = ingest_report.report_page(output.name, figures, found)
    (folder / "report.html").write_text(page, encoding="utf-8")
    if config.tfds:
      write_tfds(folder)
  print(ingest_report.report_text(output, figures))


def write_events(folder: Path, events: Events, catalogue: Catalogue) -> None:
  """Writes sequences.txt, users.jsonl, items.jsonl and, if there are times, times.npy.

  The events are sorted as by `Events.in_order`, and their users and items are numbered without
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
  """Writes the TensorFlow dataset folder/tfds, as `tfds.builder.write` does. Raises UserError."""
  from mmesid_jax.data.folder import tfds_builder  # takes seconds

  tfds_builder.write_tfds_dataset(folder, beam)


def _steps(config: ConfigDict, catalogue: Catalogue):
  """The filters that the configuration asks for, in their order."""
  steps = []
  if config.min_rating > 0:
    name = f"ratings of {config.min_rating:g} and more"
    steps.append((name, lambda e: e.rating_E >= config.min_rating))
  for field in split_names(config.require):
    having = functools.partial(_having, catalogue=catalogue, field=field)
    steps.append((f"items with {field}", having))
  if config.duplicates != "keep":
    name = f"without duplicates ({config.duplicates})"
    steps.append((name, lambda e: filters.first_of_duplicates(e, config.duplicates)))
  if max(config.core.user, config.core.item) > 1:
    name = f"core of users with {config.core.user} and items with {config.core.item}"
    sizes = (config.core.user, config.core.item)
    steps.append((name, lambda e: filters.k_core(e.user_E, e.item_E, *sizes)))
  if config.min_length > max(config.core.user, 1):
    name = f"users with {config.min_length} and more"
    steps.append((name, lambda e: np.bincount(e.user_E)[e.user_E] >= config.min_length))
  return steps


def _having(events: Events, catalogue: Catalogue, field: str) -> np.ndarray:
  """Mask [E] of events with items of which the field is known."""
  return np.array([catalogue[key].has(field) for key in events.item_keys])[events.item_E]


def _events(config: ConfigDict, bad: BadLines) -> Iterator[tuple[str, str, int | None, float]]:
  for path in map(Path, split_names(config.events)):
    if config.source in amazon.REVIEWS:
      yield from amazon.read_reviews(config.source, path, bad)
    else:
      yield from tables.event_rows(path, _layout(config, path, of_items=False), bad)


def _items(config: ConfigDict, bad: BadLines) -> Iterator[Item]:
  for path in map(Path, split_names(config.metadata)):
    if config.source in amazon.ITEMS:
      yield from amazon.read_metadata(config.source, path, bad)
    else:
      yield from tables.item_rows(path, _layout(config, path, of_items=True), bad)


def _layout(config: ConfigDict, path: Path, *, of_items: bool) -> tables.TableLayout:
  if config.source == "movielens":
    return movielens.file_layout(path, of_items=of_items)
  header = () if of_items else tuple(split_names(config.header))
  return tables.TableLayout(config.columns, config.delimiter, header)


def _check_output(output: Path) -> None:
  """Raises UserError where no folder could be made: told before anything is read."""
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(f"--output={output}: exists; name another, or delete it")
  above = next(folder for folder in output.resolve().parents if folder.exists())
  if not above.is_dir() or not os.access(above, os.W_OK):
    raise UserError(f"--output={output}: nothing can be written in {above}")
