"""A dataset on disk: plain files in, memory-mapped integer arrays out.

The plain form is one user a line in `sequences.txt`, `user item item ...`, oldest first, item ids
from 1 (0 is padding), and optionally `items.jsonl`, one JSON object an item in the order of the
ids, and `times.npy`, when the interactions were. They are parsed once into a cache of .npy files;
training reads only those. `mmesid_jax.data.split` says what of them trains.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmesid_jax.data import split as splits
from mmesid_jax.data.folder.items import UNKNOWN_ITEM, Item, read_items
from mmesid_jax.data.folder.sequences import read_sequences
from mmesid_jax.data.folder.times import read_times
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import ITEMS, SEQUENCES, TIMES, read_bytes, write_whole

SCHEMA = 1  # of the cache; raise it when the meaning of its files changes


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Users' sequences one after another, oldest item first. Rows count users from 0."""

  items: np.ndarray  # int32 [interactions], memory-mapped, ids 1..num_items
  offsets: np.ndarray  # int64 [U + 1]
  users: np.ndarray  # int64 [U], the user ids as the file writes them
  num_items: int  # I; ids 1..I, 0 = padding
  fingerprint: str  # hex sha256 of users, sequences, the number of items, and a temporal split
  items_path: str | None  # items.jsonl, where titles and categories are
  times: splits.TemporalCuts | None = None  # of a temporal split; None = leave-one-out

  def __len__(self) -> int:
    return len(self.users)

  def sequence(self, u: int) -> np.ndarray:
    """All items of user row u, int32 [length]. Raises IndexError outside 0..U-1."""
    if not 0 <= u < len(self):
      raise IndexError(f"user row {u} of {len(self)}")
    return self.items[self.offsets[u] : self.offsets[u + 1]]

  @property
  def lengths(self) -> np.ndarray:
    """Items of every user, int64 [U]."""
    return np.diff(self.offsets)

  @functools.cached_property
  def split(self) -> splits.Split:
    """What trains, and who is evaluated on which item."""
    if self.times is None:
      return splits.leave_one_out_split(self.lengths)
    return splits.temporal_split(self.offsets, self.times)

  @property
  def train_lengths(self) -> np.ndarray:
    """Items of every user in the training part, a prefix of the sequence, int64 [U]."""
    return self.split.train_lengths

  def row(self, user: int) -> int:
    """The row of a user id. Raises UserError for an id that the dataset does not hold."""
    rows = np.flatnonzero(self.users == user)
    if not len(rows):
      some = ", ".join(map(str, self.users[:3]))
      raise UserError(f"user {user}: not one of the {len(self)} users of the dataset ({some}, ...)")
    return int(rows[0])

  def titles(self) -> list[str | None]:
    """Titles by item id, [I + 1]; None where there is none. Every call reads items.jsonl."""
    return [item.title for item in self._described()]

  def categories(self) -> list[str | None]:
    """The category of every item, [I + 1]; None where there is none. Every call reads items.jsonl.

    `categories` of an item is a path of names from the general to the particular, a list of such
    paths (the first counts), or one name. Taken is the first level on which no name holds more than
    nine tenths of the items: on Beauty the second, behind "Beauty" itself. An item whose path ends
    earlier has the last of its names.
    """
    paths = [item.path for item in self._described()]
    deepest = max(map(len, paths))
    for level in range(deepest):
      names = [path[min(level, len(path) - 1)] if path else None for path in paths]
      counts = collections.Counter(filter(None, names))
      if max(counts.values()) <= 0.9 * counts.total():
        return names
    return [path[-1] if path else None for path in paths]

  def _described(self) -> list[Item]:
    """What items.jsonl says, by item id, [I + 1]."""
    if self.items_path is None:
      return [UNKNOWN_ITEM] * (self.num_items + 1)
    found = read_items(Path(self.items_path))
    if len(found) != self.num_items + 1:
      raise UserError(
        f"{self.items_path}: {len(found) - 1} items; the dataset was prepared for {self.num_items}"
      )
    return found


def evaluated_users(dataset: Dataset, part: str = "test") -> np.ndarray:
  """Rows of the users who have a target in the part, "valid" or "test", int64."""
  return np.flatnonzero(dataset.split.targets[part] != splits.NO_TARGET)


def popularity(dataset: Dataset) -> np.ndarray:
  """How often each item occurs in the training parts, int64 [I + 1]; row 0 is 0.

  Validation and test targets are not counted: q_i of MME-SID's frequency-aware fusion.
  """
  position = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], dataset.lengths)
  trained = position < np.repeat(dataset.train_lengths, dataset.lengths)
  return np.bincount(dataset.items[trained], minlength=dataset.num_items + 1)


def prepare_dataset(
  source_dir: str | os.PathLike,
  cache_dir: str | os.PathLike,
  split_at: Sequence[float] | None = None,
) -> Dataset:
  """Parses the plain files of `source_dir` into `cache_dir`, or re-uses what is there. split_at:
  the two quantiles of all times at which a temporal split cuts; None = leave-one-out, which reads
  no times.

  The cache is re-used when the sources' bytes are those it was built from. Its files appear
  complete or not at all, dataset.json last; `source_dir` is only read. Without items.jsonl the
  number of items is the largest id. Raises UserError, with file and line, for sources that do not
  hold what they should, and then leaves the cache as it was; and for cuts that leave nobody to
  train, validate or test.
  """
  cache = Path(cache_dir)
  sources = _sources(source_dir, split_at)
  hashes = {path.name: _sha256(path) for path in sources if path is not None}
  key = {"schema": SCHEMA, "sources": hashes}
  cached = _load(cache, key)
  if cached is None:
    _store(cache, key, *_parsed(sources))
    cached = _load(cache, key)
    if cached is None:
      raise UserError(f"{cache}: changed while it was written; is another run using it?")
  return _dataset(cached, sources, split_at)


def read_dataset(source_dir: str | os.PathLike, split_at: Sequence[float] | None = None) -> Dataset:
  """The plain files of `source_dir`, in memory; no cache is read or written, the fingerprint
  says nothing, and items.jsonl only tells how many items there are. Raises UserError as `prepare`
  does."""
  sources = _sources(source_dir, split_at)
  arrays, num_items = _parsed(sources)
  return _dataset(_Content(arrays, num_items, "", ""), sources, split_at)


class _Sources(NamedTuple):
  sequences: Path
  items: Path | None  # None: there is none
  times: Path | None  # None: not asked for


def _sources(source_dir: str | os.PathLike, split_at: Sequence[float] | None) -> _Sources:
  """Raises UserError for no such directory, or without the times that were asked for."""
  source = Path(source_dir)
  if not source.is_dir():
    raise UserError(f"{source}: no such directory; expected one that holds {SEQUENCES}")
  items, times = source / ITEMS, source / TIMES
  if split_at is not None and not times.exists():
    raise UserError(
      f"{times}: no such file; a temporal split needs the time of every interaction; without them "
      "take --config.data.split=leave_one_out"
    )
  return _Sources(
    source / SEQUENCES, items if items.exists() else None, None if split_at is None else times
  )


def _parsed(sources: _Sources) -> tuple[dict[str, np.ndarray], int]:
  """The arrays by name, and how many items there are. Raises UserError as `prepare` does."""
  num_items = len(read_items(sources.items)) - 1 if sources.items else None
  sequences = read_sequences(sources.sequences, num_items)
  arrays = sequences._asdict()
  if sources.times:
    arrays["times"] = read_times(sources.times, sequences.offsets)
  return arrays, num_items or int(sequences.items.max())


class _Content(NamedTuple):
  """What a folder's plain files say; the fingerprint knows nothing of times."""

  arrays: Mapping[str, np.ndarray]
  num_items: int
  fingerprint: str
  times_digest: str  # hex sha256


def _dataset(content: _Content, sources: _Sources, split_at: Sequence[float] | None) -> Dataset:
  """Raises UserError for cuts that leave nobody."""
  arrays = content.arrays
  dataset = Dataset(
    items=arrays["items"],
    offsets=arrays["offsets"],
    users=arrays["users"],
    num_items=content.num_items,
    fingerprint=content.fingerprint,
    items_path=str(sources.items) if sources.items else None,
  )
  if split_at is None:
    return dataset
  by = splits.temporal_cuts(arrays["times"], split_at)
  cuts = content.fingerprint, content.times_digest, by.valid_from, by.test_from
  digest = hashlib.sha256(json.dumps(["temporal", *cuts]).encode())
  divided = dataclasses.replace(dataset, times=by, fingerprint=digest.hexdigest())
  splits.check_split(divided.split, by, split_at)
  return divided


def _load(cache: Path, key: dict) -> _Content | None:
  """What the cache holds, memory-mapped; None when it is absent, of other sources, or damaged."""
  try:
    header = json.loads((cache / "dataset.json").read_bytes())
    if {name: header.get(name) for name in key} != key:
      return None
    arrays = {
      name: np.load(cache / f"{name}.npy", mmap_mode="r", allow_pickle=False)
      for name in header["arrays"]
    }
    if {name: [a.dtype.str, *a.shape] for name, a in arrays.items()} != header["arrays"]:
      return None
    return _Content(arrays, header["num_items"], header["fingerprint"], header.get("times", ""))
  except (OSError, ValueError, KeyError, AttributeError, EOFError):
    return None


def _store(cache: Path, key: dict, arrays: Mapping[str, np.ndarray], num_items: int) -> None:
  digest = hashlib.sha256(f"{num_items} {len(arrays['users'])}\n".encode())
  for name in ("users", "offsets", "items"):
    digest.update(_little_endian(arrays[name]).data)
  header = key | {
    "num_items": num_items,
    "fingerprint": digest.hexdigest(),
    "arrays": {name: [a.dtype.str, *a.shape] for name, a in arrays.items()},
  }
  if "times" in arrays:
    header["times"] = hashlib.sha256(_little_endian(arrays["times"]).data).hexdigest()
  try:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "dataset.json").unlink(missing_ok=True)  # from here to the end the cache is not valid
    for name, array in arrays.items():
      write_whole(cache / f"{name}.npy", lambda file, array=array: np.save(file, array))
    text = json.dumps(header, indent=2).encode() + b"\n"
    write_whole(cache / "dataset.json", lambda file: file.write(text))
  except OSError as error:
    raise UserError(f"{cache}: cannot write the dataset's cache ({error.strerror})") from None


def _little_endian(array: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _sha256(path: Path) -> str:
  return hashlib.sha256(read_bytes(path)).hexdigest()
