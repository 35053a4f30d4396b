"""The model that answers now, with the names of its items; replaced as a whole by a newer one."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.service.messages import RequestError
from mmesid_jax.serving.answer import recommendation_json
from mmesid_jax.serving.recommender import BATCHES, Recommender, Shape, TopItems
from mmesid_jax.serving.served_model import Options, open_model
from mmesid_jax.stages.blend_stage import BLEND
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.workdir import REFRESHED, Workdir

ARTIFACTS = (RECOMMENDER.name, BLEND.name, REFRESHED)  # that a model is read from
SHORT = 64  # longer histories are computed apart, in arrays of the longest length that is taken


class Kind(NamedTuple):
  """Queries that are computed together."""

  repeat: bool
  only_new: bool
  long: bool


class Addition(NamedTuple):
  """Items of one request that training never saw."""

  keys: list[str | None]
  titles: list[str | None]
  vectors: Mapping[str, np.ndarray]  # rows by modality


class LiveModel:
  """A trained model with keys and titles; its arrays have few shapes, all compiled by `warm`.

  Args:
    path: the workdir.
    options: which model; its top_k is the most that can be asked for.
    most_items: the longest history that is taken.
    additions: items that are added to the catalogue.
  """

  def __init__(
    self,
    path: pathlib.Path,
    options: Options,
    most_items: int,
    additions: Sequence[Addition] = (),
  ):
    self.files = [path / f"{name}.safetensors" for name in ARTIFACTS]
    self.versions = file_versions(self.files)  # before they are read
    served = open_model(path, options)
    self.workdir: Workdir = served.workdir
    self._model: Recommender = served.model
    self._titles, self._keys = served.titles, served.item_keys
    self.known_items = self._model.num_items
    for addition in additions:
      self._add(addition)
    self.longest = int(max(most_items, np.diff(self.workdir.dataset.offsets).max(initial=1)))
    self.top_k = min(options.top_k, self._model.largest_top_k)
    self._id_of = {k: i for i, k in enumerate(self._keys or ()) if k is not None}

  def _add(self, addition: Addition) -> None:
    try:
      self._model.add_items(addition.vectors, addition.titles)
    except UserError as error:
      reason = str(error).removeprefix(f"{self.workdir.path}: ")
      raise RequestError(f"items: {reason}") from None
    self._titles = [*self._titles, *addition.titles]
    if self._keys is not None:
      self._keys = [*self._keys, *addition.keys]

  @property
  def num_items(self) -> int:
    """Number of items, with those that were added; ids are 1 .. num_items."""
    return self._model.num_items

  def title(self, item: int) -> str | None:
    """The title of an item, None where there is none."""
    return self._titles[item]

  def item_id(self, name: int | str) -> int:
    """The id of an item by id or key. Raises RequestError for others."""
    if isinstance(name, str):
      item = self._id_of.get(name)
      if item is None:
        has_keys = f"one of {len(self._id_of):,} keys" if self._id_of else "ids; there are no keys"
        raise RequestError(f"item {name!r} is not known; expected {has_keys}")
      return item
    if not 1 <= name <= self.num_items:
      raise RequestError(f"item {name} is not in the catalogue (1 to {self.num_items})")
    return name

  def check_new_keys(self, keys: Sequence[str | None]) -> None:
    """Raises RequestError for keys of new items that are taken, come twice, or cannot be kept."""
    given = [key for key in keys if key is not None]
    if given and self._keys is None:
      raise RequestError("items: the data set has no keys, so new items can have none")
    for n, key in enumerate(given):
      if key in self._id_of or key in given[:n]:
        raise RequestError(f"items: the key {key!r} is taken")

  def kind(self, history: Sequence[int], *, repeat: bool, only_new: bool) -> Kind:
    """The kind of a query. Raises RequestError for a history that is too long, and for `only_new`
    where no item is new or the model searches."""
    if len(history) > self.longest:
      raise RequestError(f"a history of {len(history):,} items; at most {self.longest:,} are taken")
    if only_new and self.num_items == self.known_items:
      raise RequestError("only_new: no items were added to the catalogue")
    if only_new and self._model.kind == "generated":
      raise RequestError("only_new: is not there for generated items")
    return Kind(repeat, only_new, len(history) > SHORT)

  def answer(self, kind: Kind, histories: Sequence[Sequence[int]]) -> TopItems:
    """The best `top_k` items for each history, with reasons."""
    return self._answer(kind, histories, [len(history) for history in histories])

  def _answer(self, kind, histories, lengths: Sequence[int]) -> TopItems:
    """lengths: of the histories, as far as they decide the shape."""
    shape = self._model.small_shape(lengths)
    shape = Shape(shape.layout, self.longest if kind.long else SHORT)
    offered = range(self.known_items + 1, self.num_items + 1) if kind.only_new else None
    options = {"repeat": kind.repeat, "shape": shape, "offered": offered}
    return self._model.top_items(histories, self.top_k, reasons=True, **options)

  def warm(self) -> None:
    """Compiles all programs that `answer` may need."""
    for size in BATCHES:
      for length in (1, self.longest):  # in few rows and in many
        for long in (False, True):
          self._answer(Kind(False, False, long), [[1]] * size, [length] * size)

  def as_json(self, top: TopItems, place: int, top_k: int, *, reasons: bool) -> list[dict]:
    """The best items of one history, with their keys and titles."""
    best = (x[place, :top_k] for x in top)
    found = [recommendation_json(r, self._keys) for r in self._model.recommendations(*best)]
    if not reasons:
      for item in found:
        del item["parts"]
    return found


def file_versions(files: Sequence[pathlib.Path]) -> tuple:
  """Changes when one of the files is replaced."""

  def version(path: pathlib.Path) -> tuple | None:
    try:
      status = path.stat()
    except OSError:
      return None
    return status.st_ino, status.st_size, status.st_mtime_ns

  return tuple(map(version, files))
