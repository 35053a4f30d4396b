"""A prepared folder cut into shards, each of which any process can read on its own."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmesid_jax.data.folder import tfds_examples as examples
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import ITEMS, SEQUENCES, TIMES, USERS

EXAMPLES = 2**14  # of a shard; TFDS holds as many in memory while it writes them

Keyed = tuple[int, dict[str, Any]]  # TFDS's: a key, which says the order, and an example


class Place(NamedTuple):
  """In a file of lines: the line, from 0, its first byte, and how many spaces stand before."""

  line: int
  byte: int
  spaces: int


@dataclasses.dataclass(frozen=True)
class Users:
  """The users from a line of sequences.txt on, EXAMPLES of them or as many as are left."""

  folder: Path
  sequences: Place
  users: Place

  def __call__(self) -> Iterator[Keyed]:
    """Raises UserError for a line that `prepare` would not have written."""
    path, times = self.folder / SEQUENCES, read_times(self.folder)
    lines = zip(_lines(path, self.sequences), _lines(self.folder / USERS, self.users), strict=True)
    event = self.sequences.spaces  # a space before every item
    for row, (sequence, user) in enumerate(lines, start=self.sequences.line):
      stop = event + sequence.count(b" ")
      own = None if times is None else times[event:stop]
      with _named(path, row):
        example = examples.user_example(sequence, user, own)
      yield row, example
      event = stop


@dataclasses.dataclass(frozen=True)
class Items:
  """The items from a line of items.jsonl on, EXAMPLES of them or as many as are left."""

  folder: Path
  items: Place

  def __call__(self) -> Iterator[Keyed]:
    """Raises UserError for a line that `prepare` would not have written."""
    path = self.folder / ITEMS
    for row, line in enumerate(_lines(path, self.items), start=self.items.line):
      with _named(path, row):
        example = examples.item_example(line)
      yield row, example


class Shards(NamedTuple):
  shards: list[Users] | list[Items]
  examples: int


def cut_into_shards(folder: Path) -> dict[str, Shards]:
  """The shards of either configuration. Raises UserError for files that are missing, empty, or do
  not belong together."""
  (*sequences, end), (*users, last) = _places(folder / SEQUENCES), _places(folder / USERS)
  if end.line != last.line:
    raise UserError(
      f"{folder / USERS}: {last.line} lines; expected one for each of the {end.line} users"
    )
  times = read_times(folder)
  if times is not None and len(times) != end.spaces:
    raise UserError(
      f"{folder / TIMES}: {len(times)} times; expected {end.spaces}, one an interaction"
    )
  *items, after = _places(folder / ITEMS)
  pairs = zip(sequences, users, strict=True)
  return {
    examples.USERS: Shards([Users(folder, *pair) for pair in pairs], end.line),
    examples.ITEMS: Shards([Items(folder, place) for place in items], after.line),
  }


def read_times(folder: Path) -> np.ndarray | None:
  """The times of the interactions, int64 [interactions], memory-mapped; None without a file of
  them. Raises UserError for another kind of array."""
  path = folder / TIMES
  if not path.exists():
    return None
  try:
    times = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"{path}: not a readable .npy file ({error})") from None
  if times.dtype != np.int64 or times.ndim != 1:
    raise UserError(f"{path}: {times.dtype} {list(times.shape)}; expected int64 [interactions]")
  return times


def _places(path: Path) -> list[Place]:
  """Of the first line of every shard and, last, of the end. Raises UserError."""
  places, line, byte, spaces = [], 0, 0, 0
  try:
    with path.open("rb") as file:
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
  with path.open("rb") as file:
    file.seek(place.byte)
    yield from itertools.islice(file, EXAMPLES)


@contextlib.contextmanager
def _named(path: Path, row: int) -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    raise UserError(f"{path}:{row + 1}: {error}") from None
