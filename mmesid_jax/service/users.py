"""Users and their events: those of the data set, and those that the service was told."""

import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from mmesid_jax.data.dataset import Dataset
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.append import append_bytes, open_to_append
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.files.lock import try_lock
from mmesid_jax.files.readers import parse_json
from mmesid_jax.service.messages import RequestError
from mmesid_jax.serving.live_counts import NewEvents

JOURNAL = "served_events.jsonl"  # in the workdir

User = int | str


class _Addition(NamedTuple):
  """Events that were added to a history: it had `length` items then, of which `new` were new."""

  place: User
  length: int
  new: int


class Users:
  """Histories by user id, or by key where the data set has keys.

  New events go to the end of the file JOURNAL before they count, so a service that starts again has
  them. Not for several threads.
  """

  def __init__(self, dataset: Dataset, keys: Sequence[str] | None, journal: pathlib.Path):
    self._dataset = dataset
    self._row_of_key = None if keys is None else {key: row for row, key in enumerate(keys)}
    self._added: dict[User, list[int]] = {}  # by row, or by the key of a new user
    self._log: list[_Addition] = []
    self._refreshed: dict[str, int] = {}  # digest of refreshed counts -> additions before them
    self._unknown = 0  # events of items that were added, and are not there after a new start
    self._file: IO[bytes] = open_to_append(journal)
    if not try_lock(self._file, journal, "no other service writes to it"):
      self._file.close()
      raise UserError(f"{journal}: another service of this workdir is running; stop it first")
    self._read_journal(journal)

  def history(self, user: User) -> list[int]:
    """All items of a user, oldest first. Raises RequestError for an unknown one."""
    place = self._place(user)
    if place is None:
      raise RequestError(f"user {user!r} is not known")
    return self._history(place)

  def _history(self, place: User) -> list[int]:
    known = self._dataset.sequence(place).tolist() if isinstance(place, int) else []
    return known + self._added.get(place, [])

  @property
  def additions(self) -> int:
    """How often events were added, those of the journal among them."""
    return len(self._log)

  def additions_before(self, refreshed: str) -> int:
    """How many additions there were when the service first saw the refreshed counts with this
    digest, which the journal remembers. Raises OSError where it cannot be written."""
    if refreshed not in self._refreshed:
      self._write({"refreshed": refreshed})
      self._refreshed[refreshed] = len(self._log)
    return self._refreshed[refreshed]

  def new_events(self, first: int, stop: int, window: int) -> Iterator[NewEvents]:
    """The events of the additions `first` to `stop` - 1, with the `window` items before them. Also
    for another thread than that of `append`."""
    for place, length, new in self._log[first:stop]:
      known = self._dataset.sequence(place) if isinstance(place, int) else ()
      begin = max(length - new - window, 0)
      added = self._added[place][max(begin - len(known), 0) : length - len(known)]
      yield NewEvents([*map(int, known[begin:]), *added], new)

  def append(self, user: User, items: Sequence[int]) -> None:
    """Adds events at the end of a user's history. Raises RequestError for an id that is not
    known, and OSError where the journal cannot be written."""
    place = self._place(user)
    if place is None:
      if not isinstance(user, str) or self._row_of_key is None:
        raise RequestError(
          f"user {user!r} is not known; new users need a key, in a data set with keys"
        )
      place = user
    self._write({"user": user, "items": list(items)})
    self._add(place, items)

  def _add(self, place: User, items: Sequence[int]) -> None:
    self._added.setdefault(place, []).extend(items)
    known = len(self._dataset.sequence(place)) if isinstance(place, int) else 0
    self._log.append(_Addition(place, known + len(self._added[place]), len(items)))

  def _write(self, entry: dict) -> None:
    """Adds a line to the journal, the whole line or nothing. Raises OSError."""
    size = self._file.seek(0, os.SEEK_END)
    try:
      append_bytes(self._file, json.dumps(entry).encode() + b"\n")
    except OSError:  # a full disk; else the next line would be joined to a part of this one
      self._file.truncate(size)
      raise

  def close(self) -> None:
    """Closes the journal."""
    self._file.close()

  def _place(self, user: User) -> User | None:
    """The row of a user of the data set, the key of one that was added, None for others."""
    if isinstance(user, str):
      row = None if self._row_of_key is None else self._row_of_key.get(user)
      return row if row is not None else (user if user in self._added else None)
    try:
      return int(self._dataset.row(user))
    except UserError:
      return None

  def _read_journal(self, path: pathlib.Path) -> None:
    made_for = json_sha256([self._dataset.fingerprint])
    self._file.seek(0)
    lines = self._file.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):  # the service was killed before it had answered
      self._file.truncate(sum(map(len, lines[:-1])))
      lines.pop()
    if not lines:
      self._write({"dataset": made_for})
      return
    for number, line in enumerate(lines, 1):
      try:
        entry = parse_json(line)
        if number == 1:
          known = entry["dataset"]
        elif "refreshed" in entry:
          self._refreshed.setdefault(str(entry["refreshed"]), len(self._log))
        else:
          self._restore(entry["user"], entry["items"])
      except (ValueError, KeyError, TypeError, UserError):
        raise UserError(
          f"{path}:{number}: is not an event of the service; delete the line, or the file"
        ) from None
      if number == 1 and known != made_for:
        raise UserError(
          f"{path}: holds events after another data set; delete it, or serve with that data set"
        )
    if len(lines) > 1:
      reporter.info(
        f"{path}: {len(lines) - 1:,} requests with new events of {len(self._added):,} users"
      )
    if self._unknown:
      reporter.warn(
        f"{path}: {self._unknown:,} events are left out; their items were added to an earlier "
        "service, and are no longer known"
      )

  def _restore(self, user: User, items: Sequence[int]) -> None:
    place = self._place(user)
    if place is None and not isinstance(user, str):
      raise ValueError("an id of no user")
    known = [item for item in map(int, items) if 1 <= item <= self._dataset.num_items]
    self._unknown += len(items) - len(known)
    self._add(user if place is None else place, known)
