"""A trained recommender with what its workdir knows of the items, as the commands need it."""

import dataclasses
import pathlib
from typing import NamedTuple

from mmesid_jax.data.folder import keys
from mmesid_jax.data.repeats import count_repeats
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages.workdir import Workdir, reopen_workdir


@dataclasses.dataclass(frozen=True)
class Options:
  """Which items are recommended, by which model.

  model: as in `Recommender.load`. new_items: a file of items to add to the catalogue. only_new:
  recommend only those. data_dir: where the data is now, if it has moved. key: the field of
  items.jsonl that holds the keys; None = `key`, if there is one.
  """

  top_k: int = 10
  repeat: bool = False
  model: str | None = None
  new_items: str | None = None
  only_new: bool = False
  data_dir: str | None = None
  key: str | None = None


class ServedModel(NamedTuple):
  """Titles and keys are by item id, row 0 unused, new items last; item_keys is None where the data
  set keeps none."""

  workdir: Workdir
  model: Recommender
  titles: list[str | None]
  item_keys: list[str | None] | None


def open_model(path: pathlib.Path, options: Options) -> ServedModel:
  """The model of the workdir `path`, with new items where `options` names them. Raises
  UserError."""
  if options.only_new and options.new_items is None:
    raise UserError("--only_new: name the new items with --new_items=FILE")
  workdir = reopen_workdir(path, options.data_dir, newer_data=True)
  titles = workdir.dataset.titles()
  item_keys = keys.kept_item_keys(workdir.data_dir, options.key)
  _warn_of_repeats(workdir, options)
  model = Recommender.load(path, titles, model=options.model)
  if model.num_items != workdir.dataset.num_items:
    raise UserError(
      f"{workdir.data_dir}: {workdir.dataset.num_items:,} items; the model of {path} was trained "
      f"with {model.num_items:,}"
    )
  added = model.add_items(options.new_items) if options.new_items is not None else ()
  if options.only_new:
    model.restrict_to(added)
  titles += [f"(new item {n})" for n in range(1, len(added) + 1)]
  if item_keys is not None:
    item_keys = [None, *item_keys, *(None for _ in added)]
  return ServedModel(workdir, model, titles, item_keys)


def _warn_of_repeats(workdir: Workdir, options: Options) -> None:
  """Says where users often come back to an item, which lists without --repeat cannot hold."""
  repeats = count_repeats(workdir.dataset)["test"]
  if repeats.matter and not (options.repeat or options.only_new):
    reporter.warn(
      f"{repeats} of the test items are in their user's own history, which the lists leave out; "
      "--repeat keeps it in"
    )
