"""Reads a dataset folder into memory-mapped integer arrays.

The folder holds `sequences.txt` with one user per line, `user item item ...`, oldest first, item
ids from 1 (0 is padding); optionally `items.jsonl` with one JSON object per item in the order of
the ids; and optionally `times.npy` with the times of the interactions. The files are parsed once
into a cache of .npy files, and training reads only those. `mmesid_jax.data.split` decides which
interactions train.
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
from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES
from mmesid_jax.data.folder.items import UNKNOWN_ITEM, Item, read_items
from mmesid_jax.data.folder.keys import item_keys_sha256
from mmesid_jax.data.folder.sequences import read_sequences
from mmesid_jax.data.folder.times import read_times
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import open_atomic
from mmesid_jax.files.digest import bytes_sha256, json_sha256
from mmesid_jax.files.feature_table import write_array
from mmesid_jax.files.readers import read_bytes, read_json_object, read_npy

SCHEMA = 1  # version of the cache; raise it when the meaning of its files changes


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The sequences of all users, one after another, oldest item first. User rows count from 0."""

  items: np.ndarray  # int32 [interactions], memory-mapped, ids 1..num_items
  offsets: np.ndarray  # int64 [U + 1]
  users: np.ndarray  # int64 [U], user ids as in the file
  num_items: int  # I - 1; ids 1..I-1, 0 = padding
  fingerprint: str  # hex sha256 of users, sequences, number of items; and a temporal split, a refit
  items_path: str | None  # items.jsonl, with titles and categories
  temporal_cuts: splits.TemporalCuts | None = None  # of a temporal split; None = leave-one-out
  items_sha256: str | None = None  # of the file items_path
  is_refit: bool = False  # whether validation items train, too

  def __len__(self) -> int:
    return len(self.users)

  def sequence(self, u: int) -> np.ndarray:
    """Returns all items of user row u, int32 [length]. Raises IndexError outside 0..U-1."""
    if not 0 <= u < len(self):
      raise IndexError(f"user row {u} of {len(self)}")
    return self.items[self.offsets[u] : self.offsets[u + 1]]

  @property
  def lengths(self) -> np.ndarray:
    """Number of items of every user, int64 [U]."""
    return np.diff(self.offsets)

  @functools.cached_property
  def split(self) -> splits.Split:
    """The items that train, and the targets of validation and test."""
    if self.temporal_cuts is None:
      split = splits.leave_one_out_split(self.lengths)
    else:
      split = splits.temporal_split(self.offsets, self.temporal_cuts)
    return split.refitted() if self.is_refit else split

  def refitted(self) -> "Dataset":
    """The same data, split as `Split.refitted` does."""
    fingerprint = json_sha256(["refit", self.fingerprint])
    return dataclasses.replace(self, is_refit=True, fingerprint=fingerprint)

  @property
  def train_lengths(self) -> np.ndarray:
    """Length of every user's training part, a prefix of the sequence, int64 [U]."""
    return self.split.train_lengths

  def row(self, user: int) -> int:
    """Returns the row of a user id. Raises UserError for an id that is not in the dataset."""
    rows = np.flatnonzero(self.users == user)
    if not len(rows):
      examples = ", ".join(map(str, self.users[:3]))
      raise UserError(
        f"user {user}: not one of the {len(self)} users of the dataset ({examples}, ...)"
      )
    return int(rows[0])

  @functools.cached_property
  def item_digests(self) -> dict[str, str]:
    """Digests of items.jsonl, "file", and of the keys in it, "keys"; {} where items have no
    keys."""
    keys = self.items_sha256 and item_keys_sha256(Path(self.items_path))
    return {"file": self.items_sha256, "keys": keys} if keys else {}

  def has_other_keys(self, digests: Mapping[str, str]) -> bool:
    """Whether items have other keys than where `item_digests` were these; False where either side
    has none. Reads items.jsonl only if its bytes are others."""
    if not digests or digests.get("file") == self.items_sha256:
      return False
    return self.item_digests.get("keys", digests.get("keys")) != digests.get("keys")

  def titles(self) -> list[str | None]:
    """Returns titles by item id, [I]; None where unknown. Every call reads items.jsonl."""
    return [item.title for item in self._read_items()]

  def categories(self) -> list[str | None]:
    """Returns one category per item, [I]; None where unknown. Every call reads items.jsonl.

    `categories` of an item is a path of names from the general to the particular, a list of such
    paths (the first counts), or one name. The result is from the first level on which no name has
    more than 90% of the items: on Amazon Beauty the second level, after "Beauty" itself. An item
    whose path is shorter gets the last name of its path.
    """
    paths = [item.path for item in self._read_items()]
    deepest = max(map(len, paths))
    for level in range(deepest):
      names = [path[min(level, len(path) - 1)] if path else None for path in paths]
      counts = collections.Counter(filter(None, names))
      if max(counts.values()) <= 0.9 * counts.total():
        return names
    return [path[-1] if path else None for path in paths]

  def _read_items(self) -> list[Item]:
    """Reads items.jsonl: items by id, [I]."""
    if self.items_path is None:
      return [UNKNOWN_ITEM] * (self.num_items + 1)
    items = read_items(Path(self.items_path))
    if len(items) != self.num_items + 1:
      raise UserError(
        f"{self.items_path}: {len(items) - 1} items; the dataset was prepared for {self.num_items}"
      )
    return items


def evaluated_users(dataset: Dataset, part: str = "test", most_users: int = 0) -> np.ndarray:
  """Returns the rows of users with a target in `part`, "valid" or "test", int64.

  most_users: takes only this number of users, evenly spread; 0 = all.
  """
  users = np.flatnonzero(dataset.split.targets[part] != splits.NO_TARGET)
  if 0 < most_users < len(users):
    users = users[np.arange(most_users) * len(users) // most_users]
  return users


def popularity(dataset: Dataset) -> np.ndarray:
  """Counts how often each item occurs in the training parts, int64 [I]; entry 0 is 0.

  This is q_i in MME-SID's frequency-aware fusion. Validation and test targets are not counted.
  """
  items, _ = training_events(dataset)
  return np.bincount(items, minlength=dataset.num_items + 1)


def training_events(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
  """Items int32 [E] and user rows int32 [E] of all events of the training parts, users one after
  another, oldest event first."""
  position = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], dataset.lengths)
  trained = position < np.repeat(dataset.train_lengths, dataset.lengths)
  item_E, user_E = all_events(dataset)
  return item_E[trained], user_E[trained]


def all_events(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
  """The same of all events, held out or not."""
  user_E = np.repeat(np.arange(len(dataset), dtype=np.int32), dataset.lengths)
  return dataset.items, user_E


def prepare_dataset(
  source_dir: str | os.PathLike,
  cache_dir: str | os.PathLike,
  split_at: Sequence[float] | None = None,
) -> Dataset:
  """Parses the files of a dataset folder into a cache, or reuses the cache.

  The cache is reused when it was built from the same bytes. Its files appear complete or not at
  all, dataset.json last; `source_dir` is only read. Without items.jsonl the number of items is the
  largest id.

  Args:
    split_at: the two quantiles of all times at which a temporal split cuts; None = leave-one-out,
      which reads no times.

  Raises UserError, with file and line, for invalid files, and then leaves the cache as it was; and
  for cuts that leave nobody to train, validate or test.
  """
  cache = Path(cache_dir)
  sources = _find_sources(source_dir, split_at)
  hashes = {path.name: _sha256(path) for path in sources if path is not None}
  key = {"schema": SCHEMA, "sources": hashes}
  cached = _load(cache, key)
  if cached is None:
    if (cache / SEQUENCES).exists():
      raise UserError(
        f"{cache}: holds a data set, and a cache would be written over it; choose another --workdir"
      )
    _store(cache, key, *_parse(sources))
    cached = _load(cache, key)
    if cached is None:
      raise UserError(f"{cache}: changed while it was written; is another run using it?")
  dataset = _build_dataset(cached, sources, split_at)
  return dataclasses.replace(dataset, items_sha256=hashes.get(ITEMS))


def read_dataset(source_dir: str | os.PathLike, split_at: Sequence[float] | None = None) -> Dataset:
  """Reads a dataset folder into memory without a cache.

  The fingerprint is "", and items.jsonl only gives the number of items. Raises UserError as
  `prepare_dataset` does.
  """
  sources = _find_sources(source_dir, split_at)
  arrays, num_items = _parse(sources)
  return _build_dataset(_Content(arrays, num_items, "", ""), sources, split_at)


class _Sources(NamedTuple):
  """The files that are read."""

  sequences: Path
  items: Path | None  # None: the folder has none
  times: Path | None  # None: not needed


def _find_sources(source_dir: str | os.PathLike, split_at: Sequence[float] | None) -> _Sources:
  """Raises UserError for a missing directory, and for missing times that the split needs."""
  source = Path(source_dir)
  if not source.is_dir():
    raise UserError(f"{source}: no such directory; expected one that holds {SEQUENCES}")
  items, times = source / ITEMS, source / TIMES
  if split_at is not None and not times.exists():
    raise UserError(
      f"{times}: no such file; a temporal split needs the time of every interaction; without times "
      "use --config.data.split=leave_one_out"
    )
  return _Sources(
    source / SEQUENCES, items if items.exists() else None, None if split_at is None else times
  )


def _parse(sources: _Sources) -> tuple[dict[str, np.ndarray], int]:
  """Returns the arrays by name, and the number of items. Raises UserError for invalid files."""
  num_items = len(read_items(sources.items)) - 1 if sources.items else None
  sequences = read_sequences(sources.sequences, num_items)
  arrays = sequences._asdict()
  if sources.times:
    arrays["times"] = read_times(sources.times, sequences.offsets)
  return arrays, num_items or int(sequences.items.max())


class _Content(NamedTuple):
  """The parsed files of a dataset folder."""

  arrays: Mapping[str, np.ndarray]
  num_items: int
  fingerprint: str  # of everything but the times
  times_digest: str  # hex sha256


def _build_dataset(
  content: _Content, sources: _Sources, split_at: Sequence[float] | None
) -> Dataset:
  """Adds the split. Raises UserError for cuts that leave nobody to train, validate or test."""
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
  cuts = splits.temporal_cuts(arrays["times"], split_at)
  identity = content.fingerprint, content.times_digest, cuts.valid_from, cuts.test_from
  fingerprint = json_sha256(["temporal", *identity])
  dataset = dataclasses.replace(dataset, temporal_cuts=cuts, fingerprint=fingerprint)
  splits.check_split(dataset.split, cuts, split_at)
  return dataset


_ARRAYS = ("items", "offsets", "users")


def _load(cache: Path, key: dict) -> _Content | None:
  """Opens the cache, memory-mapped; None when it is missing, damaged or from other sources."""
  try:
    header = read_json_object(cache / "dataset.json")
    if {name: header.get(name) for name in key} != key:
      return None
  except UserError:
    return None
  try:
    names = [*_ARRAYS, "times"] if "times" in header["arrays"] else _ARRAYS
    arrays, num_items = {n: read_npy(cache / f"{n}.npy") for n in names}, header["num_items"]
    if _describe(key, arrays, num_items) == header and _is_possible(arrays, num_items):
      return _Content(arrays, num_items, header["fingerprint"], header.get("times", ""))
  except (UserError, KeyError, TypeError, ValueError, IndexError):
    pass
  reporter.warn(f"{cache}: not as it was written; made again from the data")
  return None


def _is_possible(arrays: Mapping[str, np.ndarray], num_items: int) -> bool:
  """Whether the arrays can be those of a data set, whoever wrote them and their digests."""
  items, offsets, times = arrays["items"], arrays["offsets"], arrays.get("times", arrays["items"])
  return (
    type(num_items) is int
    and all(x.ndim == 1 and x.dtype.kind == "i" for x in arrays.values())
    and 1 <= items.min() <= items.max() <= num_items
    and (offsets[0], offsets[-1]) == (0, len(items))
    and bool((np.diff(offsets) > 0).all())
    and (len(arrays["users"]), len(times)) == (len(offsets) - 1, len(items))
  )


def _describe(key: dict, arrays: Mapping[str, np.ndarray], num_items: int) -> dict:
  """The content of dataset.json: the key, sizes, and digests of the arrays."""
  digest = hashlib.sha256(f"{num_items} {len(arrays['users'])}\n".encode())
  for name in ("users", "offsets", "items"):
    digest.update(_little_endian(arrays[name]).data)
  header = key | {
    "num_items": num_items,
    "fingerprint": digest.hexdigest(),
    "arrays": {name: [a.dtype.str, *a.shape] for name, a in arrays.items()},
  }
  if "times" in arrays:
    header["times"] = bytes_sha256(_little_endian(arrays["times"]).data)
  return header


def _store(cache: Path, key: dict, arrays: Mapping[str, np.ndarray], num_items: int) -> None:
  try:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "dataset.json").unlink(missing_ok=True)  # the cache is invalid until the end
    for name, array in arrays.items():
      write_array(cache / f"{name}.npy", array)
    text = json.dumps(_describe(key, arrays, num_items), indent=2).encode() + b"\n"
    with open_atomic(cache / "dataset.json") as file:
      file.write(text)
  except OSError as error:
    raise UserError(f"{cache}: cannot write the dataset's cache ({error.strerror})") from None


def _little_endian(array: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _sha256(path: Path) -> str:
  return bytes_sha256(read_bytes(path))
