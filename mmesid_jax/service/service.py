"""Answers requests with the model of a workdir: the parts of the service without HTTP."""

import asyncio
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.service.batcher import Batcher, QueueFull
from mmesid_jax.service.images import Images
from mmesid_jax.service.live_model import Addition, Kind, LiveModel, file_versions
from mmesid_jax.service.messages import Events, NewItems, Recommend, RequestError
from mmesid_jax.service.users import JOURNAL, User, Users
from mmesid_jax.serving.item_texts import ItemTexts
from mmesid_jax.serving.ranker import BATCHES, TopItems
from mmesid_jax.serving.recommender import Recommender

NEWEST = 1000  # events of a history that is asked for
CHECK_SECONDS = 2.0  # between looks at the artifacts


@dataclasses.dataclass(frozen=True)
class Limits:
  """The most that a service takes."""

  queue: int = 1024  # histories that may wait for the model
  seconds: float = 10.0  # that a request may take
  body_bytes: int = 2**20  # of a request
  items: int = 1024  # of a history, where no user of the data set has more
  top_k: int = 100  # items of an answer
  histories: int = 256  # of a request


class Service:
  """Answers with the newest model of a workdir, and remembers events and added items.

  Methods are for one event loop; the model runs in a thread of its own.

  Args:
    path: the workdir.
    load: reads the workdir.
    watch: gets the size and the seconds of every batch.
    images: a folder with images of items; None = no images.

  Raises UserError as `load` and `Images` do.
  """

  def __init__(
    self,
    path: pathlib.Path,
    load: Callable[[], Recommender],
    limits: Limits,
    watch: Callable[[int, float], None] = lambda size, seconds: None,
    images: pathlib.Path | None = None,
  ):
    self.path, self.limits, self._read = path, limits, load
    self._additions: list[Addition] = []
    self._texts: ItemTexts | None = None  # read when the first item comes without vectors
    self.live = self._new_live()
    known = self.live.recommender
    self.images = Images(images, known)
    self._fingerprint = known.workdir.dataset.fingerprint
    self.users = Users(known.workdir.dataset, known.user_keys, path / JOURNAL)
    self._count_from_start(self.live)
    self.live.count_new_events(self.users)
    self.live.warm()  # takes longest, so last
    self.batcher = Batcher(self._answer, BATCHES[-1], limits.queue, watch)
    self._changing, self._encoding = asyncio.Lock(), asyncio.Lock()
    self.reloads = self.failed_reloads = 0

  def _new_live(self) -> LiveModel:
    limits = self.limits
    return LiveModel(self.path, self._read, limits.items, limits.top_k, self._additions)

  def _count_from_start(self, live: LiveModel) -> None:
    """Has the model count the events that its refreshed counts do not hold."""
    if live.refreshed is not None:
      live.counted = self.users.additions_before(live.refreshed)

  def _load(self) -> LiveModel:
    live = self._new_live()
    if live.recommender.workdir.dataset.fingerprint != self._fingerprint:
      raise UserError(f"{self.path}: other histories in its data; start again")
    if live.known_items != self.live.known_items:
      raise UserError(
        f"{self.path}: {live.known_items:,} items instead of {self.live.known_items:,}; start again"
      )
    live.warm()
    return live

  async def _replace(self) -> None:
    """Serves what the workdir and the additions hold now."""
    live = await asyncio.to_thread(self._load)
    self._count_from_start(live)

    def swap() -> None:  # between two batches
      live.count_new_events(self.users)
      self.live = live

    await asyncio.shield(asyncio.wrap_future(self.batcher.call(swap)))

  def _answer(
    self, kind: Kind, queries: Sequence[tuple[Sequence[int], bool]]
  ) -> list[tuple[LiveModel, TopItems, int]]:
    """queries: a history, and whether reasons are wanted."""
    live = self.live  # one model for the batch, whatever is put in its place
    histories, reasons = zip(*queries, strict=True)
    top = live.answer(kind, histories, reasons=any(reasons))
    return [(live, top, place) for place in range(len(histories))]

  async def recommend(self, request: Recommend) -> dict:
    """The answer to POST /recommend. Raises RequestError, QueueFull, TooLate."""
    histories = self._histories(request)
    if request.top_k > self.live.top_k:
      raise RequestError(f"top_k={request.top_k}: at most {self.live.top_k} can be asked for")
    options = {"repeat": request.repeat, "only_new": request.only_new}
    queries = [
      (self.live.kind(history, **options), (history, request.reasons)) for history in histories
    ]
    futures = self.batcher.submit(queries, self.limits.seconds)
    answers = await asyncio.gather(*map(asyncio.wrap_future, futures))
    return {
      "answers": [
        {"items": live.as_json(top, place, request.top_k, reasons=request.reasons)}
        for live, top, place in answers
      ]
    }

  def _histories(self, request: Recommend) -> list[list[int]]:
    if (request.histories is None) == (request.users is None):
      raise RequestError("expected one of histories and users")
    asked = request.histories if request.users is None else request.users
    if not 1 <= len(asked) <= self.limits.histories:
      raise RequestError(f"{len(asked):,} histories; expected 1 to {self.limits.histories}")
    if request.users is not None:
      return [self.users.history(user)[-self.live.longest :] for user in request.users]
    return [[self.live.item_id(name) for name in history] for history in request.histories]

  async def add_events(self, request: Events) -> dict:
    """The answer to POST /events: the user's history, once the events count."""
    items = [self.live.item_id(name) for name in request.items]
    if not self.batcher.is_alive:
      raise QueueFull
    self.users.append(request.user, items)
    try:
      call = self.batcher.call(lambda: self.live.count_new_events(self.users))
      await asyncio.wrap_future(call)
    except Exception as error:  # the events are in the history, and must not come twice
      reporter.warn(f"events are not counted: {type(error).__name__}: {error}")
    return self.history(request.user)

  def history(self, user: User, newest: int = NEWEST) -> dict:
    """The answer to GET /history: the `newest` events of a user."""
    events = self.users.history(user)
    items = events[-newest:]
    titles = [self.live.title(item) for item in items]
    return {"user": user, "earlier": len(events) - len(items), "items": items, "titles": titles}

  async def add_items(self, request: NewItems) -> dict:
    """The answer to POST /items: the ids of the new items, once they can be recommended."""
    if any(item.vectors is not None for item in request.items):
      vectors = _given_vectors(request)
    else:
      async with self._encoding:
        vectors = await asyncio.to_thread(self._encode, request)
    addition = Addition([i.key for i in request.items], [i.title for i in request.items], vectors)
    async with self._changing:
      self.live.check_new_keys(addition.keys)
      first = self.live.num_items + 1
      self._additions.append(addition)
      try:
        await self._replace()
      except BaseException:
        self._additions.pop()
        raise
      return {"items": list(range(first, self.live.num_items + 1))}

  def _encode(self, request: NewItems) -> dict[str, np.ndarray]:
    """The items' vectors by modality, made of their texts. Raises RequestError."""
    if self._texts is None:
      try:
        self._texts = ItemTexts(self.live.recommender.workdir)
      except UserError as error:
        reporter.warn(f"new items cannot be encoded: {error}")
        raise RequestError("items: texts cannot be encoded here; give vectors") from None
    try:
      return self._texts.vectors([{**item.fields, "title": item.title} for item in request.items])
    except UserError as error:
      raise RequestError(f"items: {error}") from None

  async def follow_artifacts(self) -> None:
    """Serves newer artifacts of the workdir as they appear; ends when it is canceled."""
    while True:
      await asyncio.sleep(CHECK_SECONDS)
      if (versions := file_versions(self.live.files)) == self.live.versions:
        continue
      async with self._changing:
        try:
          await self._replace()
          self.reloads += 1
          reporter.info(f"{self.path}: newer artifacts are served")
        except Exception as error:  # whatever it is, the model that answers goes on
          self.failed_reloads += 1
          self.live.versions = versions  # not again until they change
          reporter.warn(
            f"{self.path}: newer artifacts are not served: {type(error).__name__}: {error}"
          )

  def close(self) -> None:
    """Answers what waits, and ends."""
    self.batcher.close()
    self.users.close()


def _given_vectors(request: NewItems) -> dict[str, np.ndarray]:
  names = [set(item.vectors or ()) for item in request.items]
  if not names[0] or any(given != names[0] for given in names):
    raise RequestError("items: expected vectors of the same modalities, at least one, in all items")
  vectors = {}
  for modality in sorted(names[0]):
    rows = [item.vectors[modality] for item in request.items]
    if len({len(row) for row in rows}) > 1:
      raise RequestError(f"items: vectors of {modality} have different lengths")
    vectors[modality] = np.asarray(rows, np.float32)
    if not np.isfinite(vectors[modality]).all():
      raise RequestError(f"items: vectors of {modality} hold a number that is not finite")
  return vectors
