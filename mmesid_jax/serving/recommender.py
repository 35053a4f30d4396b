"""Recommendations by name: Recommender.load(workdir).recommend(users=["ann"]).

A user is named by an id (a number) or by a key (a text, as in users.jsonl), an item by an id or by
a key as in items.jsonl. On several devices, where the catalogue is large: load and recommend within
`jax.set_mesh`.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmesid_jax.data.folder import keys
from mmesid_jax.errors import UserError
from mmesid_jax.models.blend import ServableModel
from mmesid_jax.serving.ranker import Ranker, is_whole_number
from mmesid_jax.serving.served_model import load_model
from mmesid_jax.stages.workdir import Workdir, reopen_workdir

Name = int | str  # an id, or a key


@dataclasses.dataclass(frozen=True, slots=True)
class Recommendation:
  """One recommended item. parts: the summands of its score by source, as the model's `sources`
  names them: "identity", a modality, and of evidence for example "transitions", "similar text"."""

  item: int
  score: float
  parts: dict[str, float]
  key: str | None = None
  title: str | None = None


class Recommender(Ranker):
  """A trained model, the names of its items, and the histories of its users. Make one with `load`.

  `titles` and `item_keys` are by item id, row 0 unused; a title may be None, and item_keys is None
  where the data set has no keys.
  """

  def __init__(self, model: ServableModel, workdir: Workdir, key: str | None = None):
    """workdir: of the model. key: the field of items.jsonl that holds the keys; None = `key`, if
    there is one. Raises UserError for data with another number of items."""
    super().__init__(model, workdir.config, workdir.path)
    self.workdir = workdir
    if self.num_items != workdir.dataset.num_items:
      raise UserError(
        f"{workdir.data_dir}: {workdir.dataset.num_items:,} items; the model of {workdir.path} was "
        f"trained with {self.num_items:,}"
      )
    self.titles = workdir.dataset.titles()
    item_keys = keys.kept_item_keys(workdir.data_dir, key)
    self.item_keys = None if item_keys is None else [None, *item_keys]
    self._id_of_key = {k: i for i, k in enumerate(self.item_keys or ()) if k is not None}

  @classmethod
  def load(
    cls,
    workdir: str | pathlib.Path,
    *,
    model: str | None = None,
    data_dir: str | None = None,
    key: str | None = None,
  ) -> "Recommender":
    """Reads a workdir and the data that it was trained on.

    Args:
      model: as `Ranker.load` says; None = the blend where there is one.
      data_dir: where the data is now, if it has moved. Newer data are taken with a warning.
      key: the field of items.jsonl that holds the keys; None = `key`, if there is one.

    Raises UserError.
    """
    opened = reopen_workdir(pathlib.Path(workdir), data_dir, newer_data=True)
    loaded = load_model(opened.path, opened.config, model)
    recommender = cls(loaded.model, opened, key)
    recommender.files = loaded.files
    return recommender

  def add_items(
    self,
    source: str | pathlib.Path | Mapping[str, np.ndarray],
    titles: Sequence[str | None] | None = None,
    item_keys: Sequence[str | None] | None = None,
  ) -> range:
    """As `Ranker.add_items`, for items with titles and keys. Raises UserError also for keys that
    are taken, and for keys where the data set has none."""
    self.check_new_keys(item_keys or ())
    before = self.model
    added = super().add_items(source)
    for names, of_what in ((titles, "titles"), (item_keys, "keys")):
      if names is not None and len(names) != len(added):
        self._set_model(before)
        raise UserError(f"{len(names)} {of_what} of {len(added)} new items")
    self.titles = [*self.titles, *(titles or [None] * len(added))]
    if self.item_keys is not None:
      self.item_keys = [*self.item_keys, *(item_keys or [None] * len(added))]
      self._id_of_key |= {self.item_keys[i]: i for i in added if self.item_keys[i] is not None}
    return added

  def check_new_keys(self, item_keys: Sequence[str | None]) -> None:
    """Raises UserError for keys that items have, that come twice, or where items have none."""
    given = [key for key in item_keys if key is not None]
    if given and self.item_keys is None:
      raise UserError("the data set has no keys, so new items can have none")
    taken = set(self._id_of_key)
    for key in given:
      if key in taken:
        raise UserError(f"the key {key!r} is taken")
      taken.add(key)

  def item_id(self, name: Name) -> int:
    """The id of an item. Raises UserError for what is not one of the items."""
    if isinstance(name, str):
      if name in self._id_of_key:
        return self._id_of_key[name]
      raise UserError(f"item {name!r} is not known; expected {_known_keys(self._id_of_key)}")
    if not is_whole_number(name):
      raise UserError(f"{name!r} is not an item; expected an id, a whole number, or a key, a text")
    if not 1 <= name <= self.num_items:
      raise UserError(f"item {name} is not in the catalogue (1 to {self.num_items})")
    return int(name)

  @functools.cached_property
  def user_keys(self) -> list[str] | None:
    """Keys of the users by row, None where the data set has none."""
    return keys.kept_user_keys(self.workdir.data_dir, len(self.workdir.dataset))

  @functools.cached_property
  def _row_of_user(self) -> dict[Name, int]:
    by_id = {user: row for row, user in enumerate(self.workdir.dataset.users.tolist())}
    return by_id | {key: row for row, key in enumerate(self.user_keys or ())}

  def user_row(self, user: Name) -> int:
    """The row of a user in the data set. Raises UserError for what is not one of the users."""
    if not (isinstance(user, str) or is_whole_number(user)):
      raise UserError(f"{user!r} is not a user; expected an id, a whole number, or a key, a text")
    if user in self._row_of_user:
      return self._row_of_user[user]
    if isinstance(user, str):
      raise UserError(f"user {user!r} is not known; expected {_known_keys(self.user_keys or ())}")
    some = ", ".join(map(str, self.workdir.dataset.users[:3]))
    raise UserError(
      f"user {user} is not known; the {len(self.workdir.dataset):,} users are such as {some}"
    )

  def history(self, user: Name) -> list[int]:
    """The items of a user in the data set, oldest first. Raises UserError as `user_row` does."""
    return self.workdir.dataset.sequence(self.user_row(user)).tolist()

  def recommend(
    self,
    histories: Iterable[Iterable[Name]] | None = None,
    top_k: int = 10,
    *,
    users: Iterable[Name] | None = None,
    repeat: bool = False,
  ) -> list[list[Recommendation]]:
    """The top_k next items, best first, for each of the histories or of the users.

    Args:
      histories: items by id or key, oldest first; an empty history is a new user.
      users: users of the data set by id or key, with their whole histories.
      repeat: whether items of the history may be recommended. Where they may not, an answer may be
        shorter than top_k, or empty.

    Of a history longer than a row the newest items are read. Raises UserError for a name that is
    not known, arguments of another form, a top_k out of range, and scores that are not finite.
    """
    ids = self._histories(histories, users)
    top = self.top_items(ids, top_k, repeat=repeat, reasons=True)
    return [self.recommendations(*of_history) for of_history in zip(*top, strict=True)]

  def recommend_frame(
    self,
    histories: Iterable[Iterable[Name]] | None = None,
    top_k: int = 10,
    *,
    users: Iterable[Name] | None = None,
    repeat: bool = False,
  ):
    """`recommend` as a polars.DataFrame, a row for each recommended item.

    Columns: `history` (its number, from 0) or `user` (as given), `place` (from 1), `item`, `key`,
    `title`, `score`, and for each source its summand, as "transitions". `.to_pandas()` makes a
    pandas frame of it.
    """
    import polars as pl

    users = users if users is None else _listed(users, "users", "user ids or keys")
    answers = self.recommend(histories, top_k, users=users, repeat=repeat)
    asked, name = (range(len(answers)), "history") if users is None else (users, "user")
    if users is not None and len({isinstance(user, str) for user in users}) > 1:
      asked = list(map(str, users))  # a column has one type
    is_text = any(isinstance(who, str) for who in asked) if users is not None else False
    rows = [
      {name: who, "place": place, "item": r.item, "key": r.key, "title": r.title, "score": r.score}
      | r.parts
      for who, answer in zip(asked, answers, strict=True)
      for place, r in enumerate(answer, 1)
    ]
    numbers = {source: pl.Float64 for source in ("score", *self.sources)}
    schema = {
      name: pl.String if is_text else pl.Int64,
      "place": pl.Int64,
      "item": pl.Int64,
      "key": pl.String,
    }
    return pl.DataFrame(rows, schema | {"title": pl.String} | numbers)

  def _histories(self, histories, users) -> list[list[int] | np.ndarray]:
    if (histories is None) == (users is None):
      raise UserError("expected one of histories and users")
    if users is not None:
      users = _listed(users, "users", "user ids or keys")
      return [self.workdir.dataset.sequence(self.user_row(user)) for user in users]
    ids = []
    for n, history in enumerate(_listed(histories, "histories", "histories, each of items"), 1):
      if isinstance(history, np.ndarray) and history.dtype.kind in "iu" and history.ndim == 1:
        ids.append(history)  # `top_items` checks the range
        continue
      if isinstance(history, str) or not isinstance(history, Iterable):
        raise UserError(
          f"histories: number {n} is {history!r}; expected a list of histories, each a list of "
          "items, as [[12, 57]]"
        )
      try:
        ids.append([self.item_id(name) for name in history])
      except UserError as error:
        raise UserError(f"history {n}: {error}") from None
    return ids

  def recommendations(
    self, item_A: np.ndarray, score_A: np.ndarray, part_AO: np.ndarray | None
  ) -> list[Recommendation]:
    """The items of one history in `TopItems`, with their names; without parts where it has none."""
    parts = [{}] * len(item_A)
    if part_AO is not None:
      parts = [dict(zip(self.sources, part_O, strict=True)) for part_O in part_AO.tolist()]
    return [
      Recommendation(
        item,
        score,
        of_item,
        self.item_keys and self.item_keys[item],
        self.titles[item],
      )
      for item, score, of_item in zip(item_A.tolist(), score_A.tolist(), parts, strict=True)
      if math.isfinite(score)
    ]


def _listed(values: Iterable, name: str, expected: str) -> list:
  if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
    raise UserError(f"{name}={values!r}: expected a list of {expected}")
  return list(values)


def _known_keys(known: Iterable[str]) -> str:
  known = list(known)
  return f"one of {len(known):,} keys such as {known[0]!r}" if known else "ids; there are no keys"
