"""A dataset on disk: plain files in, memory-mapped integer arrays out.

The plain form is one user a line in `sequences.txt`, `user item item ...`, oldest first, item ids
from 1 (0 is padding), and optionally `items.jsonl`, one JSON object an item in the order of the
ids. Text is parsed once into a cache of .npy files; training reads only those.

The split is leave-one-out: a user's last item is the test target, the one before the validation
target, the rest trains. Users with fewer than 3 items only train.
"""

import collections
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mmesid_jax.errors import UserError, writing

SCHEMA = 1  # of the cache; raise it when the meaning of its files changes
SEQUENCES, ITEMS = "sequences.txt", "items.jsonl"
MAX_ITEM = np.iinfo(np.int32).max
MAX_USER = np.iinfo(np.int64).max


class Sequences(NamedTuple):
  """What a sequences file says. User row u's items are items[offsets[u]:offsets[u + 1]]."""

  users: np.ndarray  # int64 [U]
  items: np.ndarray  # int32 [interactions]
  offsets: np.ndarray  # int64 [U + 1]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Users' sequences one after another, oldest item first. Rows count users from 0."""

  items: np.ndarray  # int32 [interactions], memory-mapped, ids 1..num_items
  offsets: np.ndarray  # int64 [U + 1]
  users: np.ndarray  # int64 [U], the user ids as the file writes them
  num_items: int  # I; ids 1..I, 0 = padding
  fingerprint: str  # hex sha256 of users, sequences and the number of items
  items_path: str | None  # items.jsonl, where titles and categories are

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

  @property
  def train_lengths(self) -> np.ndarray:
    """Items of every user in the training part, a prefix of the sequence, int64 [U]."""
    lengths = self.lengths
    return np.where(lengths >= 3, lengths - 2, lengths)

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

  def _described(self) -> list["_Item"]:
    """What items.jsonl says, by item id, [I + 1]."""
    if self.items_path is None:
      return [_Item(None, ())] * (self.num_items + 1)
    found = _read_items(Path(self.items_path))
    if len(found) != self.num_items + 1:
      raise UserError(
        f"{self.items_path}: {len(found) - 1} items; the dataset was prepared for {self.num_items}"
      )
    return found


def evaluated_users(dataset: Dataset) -> np.ndarray:
  """Rows of the users with at least 3 items, whom validation and test hold, int64."""
  return np.flatnonzero(dataset.lengths >= 3)


def popularity(dataset: Dataset) -> np.ndarray:
  """How often each item occurs in the training parts, int64 [I + 1]; row 0 is 0.

  Validation and test targets are not counted: q_i of MME-SID's frequency-aware fusion.
  """
  position = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], dataset.lengths)
  trained = position < np.repeat(dataset.train_lengths, dataset.lengths)
  return np.bincount(dataset.items[trained], minlength=dataset.num_items + 1)


def prepare(source_dir: str | os.PathLike, cache_dir: str | os.PathLike) -> Dataset:
  """Parses the plain files of `source_dir` into `cache_dir`, or re-uses what is there.

  The cache is re-used when the sources' bytes are those it was built from. Its files appear
  complete or not at all, dataset.json last; `source_dir` is only read. Without items.jsonl the
  number of items is the largest id. Raises UserError, with file and line, for sources that do not
  hold what they should, and then leaves the cache as it was.
  """
  cache = Path(cache_dir)
  sequences_path, items_path = _sources(source_dir)
  hashes = {p.name: _sha256(p) for p in (sequences_path, items_path) if p is not None}
  key = {"schema": SCHEMA, "sources": hashes}
  dataset = _load(cache, key, items_path)
  if dataset is None:
    _store(cache, key, *_parsed(sequences_path, items_path))
    dataset = _load(cache, key, items_path)
    if dataset is None:
      raise UserError(f"{cache}: changed while it was written; is another run using it?")
  return dataset


def read(source_dir: str | os.PathLike) -> Dataset:
  """The plain files of `source_dir`, in memory; no cache is read or written, and items.jsonl only
  tells how many items there are. Raises UserError as `prepare` does."""
  sequences_path, items_path = _sources(source_dir)
  (users, items, offsets), num_items = _parsed(sequences_path, items_path)
  return Dataset(items, offsets, users, num_items, "", str(items_path) if items_path else None)


def _sources(source_dir: str | os.PathLike) -> tuple[Path, Path | None]:
  """Where the sequences are, and the items, None without any. Raises UserError."""
  source = Path(source_dir)
  if not source.is_dir():
    raise UserError(f"{source}: no such directory; expected one that holds {SEQUENCES}")
  return source / SEQUENCES, source / ITEMS if (source / ITEMS).exists() else None


def _parsed(sequences_path: Path, items_path: Path | None) -> tuple[Sequences, int]:
  """The sequences, and how many items there are. Raises UserError as `prepare` does."""
  num_items = len(_read_items(items_path)) - 1 if items_path else None
  sequences = read_sequences(sequences_path, num_items)
  return sequences, num_items or int(sequences.items.max())


def read_sequences(path: str | os.PathLike, num_items: int | None = None) -> Sequences:
  """Parses a sequences file: one user a line, `user item item ...`, items from 1 to `num_items`.

  Raises UserError naming the line: no or an empty file, a line that is not integers, a user without
  items, an item id out of range, a user that already stood on an earlier line.
  """
  path = Path(path)
  data = read_bytes(path)
  if not data.strip():
    raise UserError(f"{path}: is empty; expected a line `user item item ...` for every user")
  data = data if data.endswith(b"\n") else data + b"\n"
  sequences = _parse(data)
  limit = MAX_ITEM if num_items is None else num_items
  if sequences is None or not _valid(sequences, limit):
    raise UserError(f"{path}:{_first_mistake(data, num_items)}")
  return Sequences(sequences.users, sequences.items.astype(np.int32), sequences.offsets)


def _parse(data: bytes) -> Sequences | None:
  """Digits and white space, at least two numbers a line -> arrays (items as int64); else None."""
  if data.translate(None, b"0123456789 \t\r\n"):
    return None
  characters = np.frombuffer(data, np.uint8)
  token = characters > ord(" ")
  starts = np.flatnonzero(token & ~np.concatenate([[False], token[:-1]]))
  line_ends = np.searchsorted(starts, np.flatnonzero(characters == ord("\n")))
  counts = np.diff(line_ends, prepend=0)
  if counts.min() < 2:
    return None
  numbers = np.fromstring(data, np.int64, sep=" ")
  is_user = np.zeros(len(numbers), bool)
  is_user[line_ends - counts] = True
  offsets = np.concatenate([[0], np.cumsum(counts - 1)])
  return Sequences(numbers[is_user], numbers[~is_user], offsets)


def _valid(sequences: Sequences, limit: int) -> bool:
  in_range = sequences.items.min() >= 1 and sequences.items.max() <= limit
  # numpy reads a number too large for int64 as the largest one, so that one is looked at again
  return (
    in_range
    and sequences.users.max() < MAX_USER
    and len(np.unique(sequences.users)) == len(sequences.users)
  )


def _first_mistake(data: bytes, num_items: int | None) -> str:
  """The first line of a file known to be wrong that breaks a rule, as `line: what is wrong`."""
  seen: dict[int, int] = {}
  for number, line in enumerate(data.split(b"\n")[:-1], start=1):
    tokens = line.decode("utf-8", errors="replace").split()
    for token in tokens:
      if not re.fullmatch(r"-?[0-9]+", token):
        return f"{number}: {_quote(token)} is not an integer; expected `user item item ...`"
    if not tokens:
      return f"{number}: is blank; expected `user item item ...`"
    user, *items = map(_number, tokens)
    if not 0 <= user < MAX_USER:
      return f"{number}: user id {_quote(tokens[0])} is out of range; expected 0 to 2^63 - 2"
    if not items:
      return f"{number}: user {user} has no items; expected `user item item ...`"
    for item, token in zip(items, tokens[1:], strict=True):
      if item < 1:
        return f"{number}: item id {_quote(token)}; ids count from 1, 0 is padding"
      if num_items is not None and item > num_items:
        return f"{number}: item id {_quote(token)}, but {ITEMS} holds only {num_items} items"
      if item > MAX_ITEM:
        return f"{number}: item id {_quote(token)}; the largest possible is {MAX_ITEM}"
    if user in seen:
      return f"{number}: user {user} already stands on line {seen[user]}; one line a user"
    seen[user] = number
  raise AssertionError("the fast path refused a file that has no mistake")


def _number(token: str) -> int:
  """int() of a token of any length: beyond 30 digits it is out of range, whatever it says."""
  return int(token[:30])


def _quote(token: str) -> str:
  return repr(token if len(token) <= 40 else token[:37] + "...")


class _Item(NamedTuple):
  title: str | None
  path: tuple[str, ...]  # of categories; () = none


def _read_items(path: Path) -> list[_Item]:
  """Items by id from items.jsonl; checks that line n is a JSON object with item_id n."""
  items = [_Item(None, ())]
  for number, line in enumerate(read_bytes(path).splitlines(), start=1):
    try:
      item = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UserError(f"{path}:{number}: not JSON ({error}); expected one object a line") from None
    if not isinstance(item, dict) or item.get("item_id") != number or item["item_id"] is True:
      found = item.get("item_id") if isinstance(item, dict) else item
      raise UserError(
        f'{path}:{number}: expected an object with "item_id": {number}, the number of the line, '
        f"found {_quote(json.dumps(found))}"
      )
    title = item.get("title")
    if title is not None and not isinstance(title, str):
      raise UserError(f"{path}:{number}: title is {_quote(json.dumps(title))}, not a string")
    categories = _category_path(item.get("categories"))
    if categories is None:
      raise UserError(
        f"{path}:{number}: categories is {_quote(json.dumps(item['categories']))}; expected a list "
        "of names, from the general to the particular"
      )
    items.append(_Item(title or None, categories))
  if len(items) == 1:
    raise UserError(f"{path}: is empty; expected one JSON object an item")
  return items


def _category_path(value: object) -> tuple[str, ...] | None:
  """The names of `categories`, () for none; None when it is not what Dataset.categories reads."""
  if isinstance(value, str):
    value = [value]
  if isinstance(value, list) and value and all(isinstance(names, list) for names in value):
    value = value[0]
  if value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
    return tuple(filter(None, value or ()))
  return None


def _load(cache: Path, key: dict, items_path: Path | None) -> Dataset | None:
  """The cache's dataset, memory-mapped; None when it is absent, of other sources, or damaged."""
  try:
    header = json.loads((cache / "dataset.json").read_bytes())
    if {name: header.get(name) for name in key} != key:
      return None
    arrays = {
      name: np.load(cache / f"{name}.npy", mmap_mode="r", allow_pickle=False)
      for name in ("items", "offsets", "users")
    }
    if {name: [a.dtype.str, *a.shape] for name, a in arrays.items()} != header["arrays"]:
      return None
    return Dataset(
      **arrays,
      num_items=header["num_items"],
      fingerprint=header["fingerprint"],
      items_path=str(items_path) if items_path else None,
    )
  except (OSError, ValueError, KeyError, AttributeError, EOFError):
    return None


def _store(cache: Path, key: dict, sequences: Sequences, num_items: int) -> None:
  arrays = sequences._asdict()
  digest = hashlib.sha256(f"{num_items} {len(sequences.users)}\n".encode())
  for array in (sequences.users, sequences.offsets, sequences.items):
    digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
  header = key | {
    "num_items": num_items,
    "fingerprint": digest.hexdigest(),
    "arrays": {name: [a.dtype.str, *a.shape] for name, a in arrays.items()},
  }
  try:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "dataset.json").unlink(missing_ok=True)  # from here to the end the cache is not valid
    for name, array in arrays.items():
      write_whole(cache / f"{name}.npy", lambda file, array=array: np.save(file, array))
    text = json.dumps(header, indent=2).encode() + b"\n"
    write_whole(cache / "dataset.json", lambda file: file.write(text))
  except OSError as error:
    raise UserError(f"{cache}: cannot write the dataset's cache ({error.strerror})") from None


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
  """Writes a file that is there complete or not at all: under a temporary name, then renamed.
  Raises UserError where the disk refuses it."""
  with writing(path):
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
      with os.fdopen(handle, "wb") as file:
        write(file)
      os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared cache from one's colleagues
      os.replace(temporary, path)
    except BaseException:
      os.unlink(temporary)
      raise


def _sha256(path: Path) -> str:
  return hashlib.sha256(read_bytes(path)).hexdigest()


def read_bytes(path: Path) -> bytes:
  """The whole file. Raises UserError where it cannot be read."""
  try:
    return path.read_bytes()
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None
