"""Cuts a prepared folder into shards; any process can read a shard independently of the others."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmesid_jax.data.folder import tfds_examples as examples
from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES, USERS
from mmesid_jax.data.folder.times import open_times
from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import open_to_read

EXAMPLES = 2**14  # per shard; TFDS holds a whole shard in memory while it writes it

KeyedExample = tuple[int, dict[str, Any]]  # TFDS orders examples by their key


class Place(NamedTuple):
  """A place in a text file: a line, from 0, its first byte, and the number of spaces before it."""

  line: int
  byte: int
  spaces: int


@dataclasses.dataclass(frozen=True)
class Users:
  """A shard of users: EXAMPLES of them from a line of sequences.txt on, or all that are left."""

  folder: Path
  sequences: Place
  users: Place

  def __call__(self) -> Iterator[KeyedExample]:
    """Raises UserError for a line that `prepare` would not have written."""
    path, times = self.folder / SEQUENCES, open_folder_times(self.folder)
    lines = zip(_lines(path, self.sequences), _lines(self.folder / USERS, self.users), strict=True)
    event = self.sequences.spaces  # every item has one space before it
    for row, (sequence, user) in enumerate(lines, start=self.sequences.line):
      stop = event + sequence.count(b" ")
      user_times = None if times is None else times[event:stop]
      with _name_line(path, row):
        example = examples.user_example(sequence, user, user_times)
      yield row, example
      event = stop


@dataclasses.dataclass(frozen=True)
class Items:
  """A shard of items: EXAMPLES of them from a line of items.jsonl on, or all that are left."""

  folder: Path
  items: Place

  def __call__(self) -> Iterator[KeyedExample]:
    """Raises UserError for a line that `prepare` would not have written."""
    path = self.folder / ITEMS
    for row, line in enumerate(_lines(path, self.items), start=self.items.line):
      with _name_line(path, row):
        example = examples.item_example(line)
      yield row, example


class Shards(NamedTuple):
  """All shards of one configuration, and its number of examples."""

  shards: list[Users] | list[Items]
  examples: int


def cut_into_shards(folder: Path) -> dict[str, Shards]:
  """Returns the shards by configuration.

  Raises UserError for files that are missing, empty, or do not belong together.
  """
  *sequences, sequences_end = _shard_places(folder / SEQUENCES)
  *users, users_end = _shard_places(folder / USERS)
  num_users, interactions = sequences_end.line, sequences_end.spaces
  if users_end.line != num_users:
    raise UserError(
      f"{folder / USERS}: {users_end.line} lines; expected one for each of the {num_users} users"
    )
  times = open_folder_times(folder)
  if times is not None and len(times) != interactions:
    raise UserError(
      f"{folder / TIMES}: {len(times)} times; expected {interactions}, one per interaction"
    )
  *items, items_end = _shard_places(folder / ITEMS)
  pairs = zip(sequences, users, strict=True)
  return {
    examples.USERS_CONFIG: Shards([Users(folder, *pair) for pair in pairs], num_users),
    examples.ITEMS_CONFIG: Shards([Items(folder, place) for place in items], items_end.line),
  }


def open_folder_times(folder: Path) -> np.ndarray | None:
  """Opens times.npy, int64 [interactions]; None if the folder has none. Raises UserError."""
  path = folder / TIMES
  return open_times(path) if path.exists() else None


def _shard_places(path: Path) -> list[Place]:
  """Returns the place of the first line of every shard and, last, that of the end of the file."""
  places, line, byte, spaces = [], 0, 0, 0
  try:
    with open_to_read(path) as file:
      for line, text in enumerate(file):  # noqa: B007
        if line % EXAMPLES == 0:
          places.append(Place(line, byte, spaces))
        byte += len(text)
        spaces += text.count(b" ")
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror.lower()})") from None
  if not places:
    raise UserError(f"{path}: is empty")
  return [*places, Place(line + 1, byte, spaces)]


def _lines(path: Path, place: Place) -> Iterator[bytes]:
  with open_to_read(path) as file:
    file.seek(place.byte)
    yield from itertools.islice(file, EXAMPLES)


@contextlib.contextmanager
def _name_line(path: Path, row: int) -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    raise UserError(f"{path}:{row + 1}: {error}") from None
