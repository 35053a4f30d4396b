"""The model that answers now, with the names of its items; replaced as a whole by a newer one."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_header
from mmesid_jax.files.digest import file_sha256
from mmesid_jax.service.messages import RequestError
from mmesid_jax.service.users import Users
from mmesid_jax.serving.answer import recommendation_json
from mmesid_jax.serving.live_counts import LiveCounts
from mmesid_jax.serving.ranker import BATCHES, Shape, TopItems
from mmesid_jax.serving.recommender import Name, Recommender
from mmesid_jax.stages.blend_stage import BLEND, blend_file
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.workdir import REFRESHED

ARTIFACTS = (RECOMMENDER.name, BLEND.name, REFRESHED)  # that a model is read from
LENGTHS = (24, 64)  # of histories in one array; longer ones are in arrays of the longest length


class Kind(NamedTuple):
  """Queries that are computed together."""

  repeat: bool
  only_new: bool
  length: int  # of the longest history that their arrays hold


class Addition(NamedTuple):
  """Items of one request that training never saw."""

  keys: list[str | None]
  titles: list[str | None]
  vectors: Mapping[str, np.ndarray]  # rows by modality


class LiveModel:
  """A recommender that is asked in few shapes of arrays, all compiled by `warm`.

  Args:
    path: the workdir.
    load: reads it.
    most_items: the longest history that is taken.
    top_k: the most items that can be asked for.
    additions: items that are added to the catalogue.
  """

  def __init__(
    self,
    path: pathlib.Path,
    load: Callable[[], Recommender],
    most_items: int,
    top_k: int,
    additions: Sequence[Addition] = (),
  ):
    self.files = [path / f"{name}.safetensors" for name in ARTIFACTS]
    self.versions = file_versions(self.files)  # before they are read
    self.recommender = load()
    self.known_items = self.recommender.num_items
    for addition in additions:
      self._add(addition)
    lengths = self.recommender.workdir.dataset.lengths
    self.longest = int(max(most_items, lengths.max(initial=1)))
    self.lengths = (*(x for x in LENGTHS if x < self.longest), self.longest)
    self.top_k = min(top_k, self.recommender.largest_top_k)
    self._counts: LiveCounts | None = None
    self.refreshed: str | None = None  # digest of the counts of `mmesid_jax.refresh`
    self.counted = 0  # of the additions of events, those in the counts
    if self.recommender.kind == "blend":
      settings = read_header(blend_file(path), BLEND.name)["settings"]
      self._counts = LiveCounts(self.recommender, settings["window"], settings["distance_decay"])
      if (refreshed := self.recommender.workdir.artifact(REFRESHED)) in self.recommender.files:
        self.refreshed = file_sha256(refreshed)

  def _add(self, addition: Addition) -> None:
    try:
      self.recommender.add_items(addition.vectors, addition.titles, addition.keys)
    except UserError as error:
      reason = str(error).removeprefix(f"{self.recommender.path}: ")
      raise RequestError(f"items: {reason}") from None

  @property
  def num_items(self) -> int:
    """Number of items, with those that were added; ids are 1 .. num_items."""
    return self.recommender.num_items

  def title(self, item: int) -> str | None:
    """The title of an item, None where there is none."""
    return self.recommender.titles[item]

  def item_id(self, name: Name) -> int:
    """The id of an item by id or key. Raises RequestError for others."""
    try:
      return self.recommender.item_id(name)
    except UserError as error:
      raise RequestError(str(error)) from None

  def check_new_keys(self, keys: Sequence[str | None]) -> None:
    """Raises RequestError for keys of new items that are taken, come twice, or cannot be kept."""
    try:
      self.recommender.check_new_keys(keys)
    except UserError as error:
      raise RequestError(f"items: {error}") from None

  def kind(self, history: Sequence[int], *, repeat: bool, only_new: bool) -> Kind:
    """The kind of a query. Raises RequestError for a history that is too long, and for `only_new`
    where no item is new or the model searches."""
    if len(history) > self.longest:
      raise RequestError(f"a history of {len(history):,} items; at most {self.longest:,} are taken")
    if only_new and self.num_items == self.known_items:
      raise RequestError("only_new: no items were added to the catalogue")
    if only_new and self.recommender.kind == "generated":
      raise RequestError("only_new: is not there for generated items")
    return Kind(repeat, only_new, next(x for x in self.lengths if x >= len(history)))

  def answer(self, kind: Kind, histories: Sequence[Sequence[int]], *, reasons: bool) -> TopItems:
    """The best `top_k` items for each history, with the parts of their scores if `reasons`."""
    lengths = [len(history) for history in histories]
    return self._answer(kind, histories, lengths, reasons=reasons)

  def _answer(self, kind, histories, lengths: Sequence[int], *, reasons: bool) -> TopItems:
    """lengths: of the histories, as far as they decide the shape."""
    shape = self.recommender.small_shape(lengths)
    shape = Shape(shape.layout, kind.length)
    offered = range(self.known_items + 1, self.num_items + 1) if kind.only_new else None
    options = {"repeat": kind.repeat, "shape": shape, "offered": offered}
    return self.recommender.top_items(histories, self.top_k, reasons=reasons, **options)

  def count_new_events(self, users: Users) -> None:
    """Adds the transitions of all events that were added to users and are not counted yet."""
    first, self.counted = self.counted, users.additions
    if self._counts is not None and first < self.counted:
      self._counts.add(users.new_events(first, self.counted, self._counts.window))

  def warm(self) -> None:
    """Compiles all programs that `answer` may need."""
    if self._counts is not None:
      self._counts.warm()
    shortest = 0
    for longest in self.lengths:
      smallest = 1
      for size in BATCHES:
        # the fewest tokens and the most: in few rows and in many, as far as both can be
        for count, length in ((smallest, shortest), (size, longest)):
          kind = Kind(False, False, longest)
          self._answer(kind, [[1]] * count, [length] * count, reasons=True)
        smallest = size + 1
      shortest = longest + 1

  def as_json(self, top: TopItems, place: int, top_k: int, *, reasons: bool) -> list[dict]:
    """The best items of one history, with their keys and titles."""
    parts = top.part_EAO if reasons else None
    best = (None if x is None else x[place, :top_k] for x in (*top[:2], parts))
    found = [recommendation_json(r) for r in self.recommender.recommendations(*best)]
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
