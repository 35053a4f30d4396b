"""Which model a command asks, and for which items."""

import dataclasses
import pathlib

from mmesid_jax.data.repeats import count_repeats
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.serving.recommender import Recommender


@dataclasses.dataclass(frozen=True)
class Options:
  """Which items are recommended, by which model.

  model, data_dir, key: as in `Recommender.load`. new_items: a file of items to add to the
  catalogue. only_new: recommend only those.
  """

  top_k: int = 10
  repeat: bool = False
  model: str | None = None
  new_items: str | None = None
  only_new: bool = False
  data_dir: str | None = None
  key: str | None = None


def open_recommender(path: pathlib.Path, options: Options) -> Recommender:
  """The recommender of the workdir `path`, with new items where `options` names them. Warns where
  users often come back to an item, which lists without --repeat cannot hold. Raises UserError."""
  if options.only_new and options.new_items is None:
    raise UserError("--only_new: name the new items with --new_items=FILE")
  model = Recommender.load(path, model=options.model, data_dir=options.data_dir, key=options.key)
  repeats = count_repeats(model.workdir.dataset)["test"]
  if repeats.matter and not (options.repeat or options.only_new):
    reporter.warn(
      f"{repeats} of the test items are in their user's own history, which the lists leave out; "
      "--repeat keeps it in"
    )
  if options.new_items is not None:
    added = model.add_items(options.new_items)
    model.titles[added.start :] = [f"(new item {n})" for n in range(1, len(added) + 1)]
    if options.only_new:
      model.restrict_to(added)
  return model
