"""Everything that is wrong with a data set's folder, told at once, and what is right but may not be
meant."""

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmesid_jax.data import features as feature_tables
from mmesid_jax.data.folder import items, keys, sequences, times
from mmesid_jax.data.folder.problems import (
  NOT_JSON,
  SHOWN,
  Mistake,
  format_problems,
  read_json_lines,
)
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import ITEMS, SEQUENCES, TIMES, USERS, read_npy

TABLES = (".npy", ".safetensors")


class Problem(NamedTuple):
  """What is printed as one line. A warning keeps nothing from training."""

  text: str
  warning: bool = False

  def __str__(self) -> str:
    return f"warning: {self.text}" if self.warning else self.text


Problems = Iterator[Problem]


def check_folder(directory: str | os.PathLike, features: Sequence[str] = ()) -> None:
  """Prints all `problems`. Raises UserError when one is more than a warning."""
  wrong = 0
  for problem in find_problems(directory, features):
    wrong += not problem.warning
    print(problem, flush=True)
  if wrong:
    kinds = "a mistake keeps" if wrong == 1 else f"{wrong} kinds of mistakes keep"
    raise UserError(f"{directory}: {kinds} it from being trained on; see above")
  print(f"{directory}: can be trained on")


def find_problems(directory: str | os.PathLike, features: Sequence[str] = ()) -> Problems:
  """Reads sequences.txt, items.jsonl, users.jsonl, times.npy and every feature table: the named
  ones, and what else in the folder has a row an item. A line for every kind of mistake says where
  the first three are, and how many. Raises UserError where there is no such directory."""
  source = Path(directory)
  if not source.is_dir():
    raise UserError(f"{source}: no such directory; expected one that holds {SEQUENCES}")
  described = yield from _guarded(source, _items(source))
  found = yield from _guarded(source, _sequences(source, described))
  num_items = described or (found and int(found.items.max()))
  yield from _guarded(source, _times(source, found))
  yield from _guarded(source, _users(source, found))
  yield from _tables(source, num_items, features)


def _guarded(source: Path, part: Generator) -> Generator[Problem, None, object]:
  """The problems of a part, its UserError among them; returns what it returns, None after that."""
  try:
    return (yield from part)
  except UserError as error:
    yield Problem(str(error).removeprefix(f"{source}{os.sep}"))


def _all(file: str, mistakes: Iterable[Mistake], *, warning: bool = False) -> Problems:
  return (Problem(line, warning) for line in format_problems(file, mistakes))


def _items(source: Path) -> Generator[Problem, None, int | None]:
  """Returns how many items are described, None without any."""
  path = source / ITEMS
  if not path.exists():
    return None
  yield from _all(ITEMS, _mistakes_in(items.scan_items(path)))
  return (yield from _keys(path)) or None


def _keys(path: Path) -> Generator[Problem, None, int]:
  """Of lines whose other mistakes are told; nothing where no line has a key, as those are known by
  their ids. Returns how many lines there are."""
  found = list(keys.scan_keys(read_json_lines(path)))
  if any(isinstance(key, str) for key in found):
    mistakes = (x for x in _mistakes_in(found) if x.kind != NOT_JSON)
    yield from _all(path.name, mistakes, warning=True)
  return len(found)


def _mistakes_in(found: Iterable[object]) -> Iterator[Mistake]:
  return (x for x in found if isinstance(x, Mistake))


def _sequences(
  source: Path, described: int | None
) -> Generator[Problem, None, sequences.Sequences | None]:
  """Returns the sequences as far as they are numbers."""
  found, mistakes = sequences.scan_sequences(source / SEQUENCES, described)
  yield from _all(SEQUENCES, mistakes)
  if found is None:
    return None
  short = np.flatnonzero(np.diff(found.offsets) < 3)
  if len(short):
    text = "users with fewer than 3 items, whom leave-one-out does not evaluate"
    yield _counted(f"{SEQUENCES}: {text}", "line", short + 1)
  if described:
    met = found.items[(found.items >= 1) & (found.items <= described)]
    nobodys = np.flatnonzero(np.bincount(met, minlength=described + 1)[1:] == 0) + 1
    if len(nobodys):
      yield _counted(f"{ITEMS}: items that nobody has", "line", nobodys)
  return found


def _times(source: Path, found: sequences.Sequences | None) -> Problems:
  if not (source / TIMES).exists():
    return
  read = read_npy(source / TIMES)
  if found is None:
    yield Problem(f"{TIMES}: not compared with {SEQUENCES}, mend that first", warning=True)
  else:
    yield from _all(TIMES, times.times_mistakes(read, found.offsets))


def _users(source: Path, found: sequences.Sequences | None) -> Problems:
  path = source / USERS
  if not path.exists():
    return
  users = None if found is None else found.users
  yield from _all(USERS, _other_users(read_json_lines(path), users))
  yield from _keys(path)


def _other_users(
  lines: Iterable[tuple[int, object]], users: np.ndarray | None
) -> Iterator[Mistake]:
  """Line n must be of the user on line n of sequences.txt, where those are known."""
  number = 0
  for number, content in lines:
    if isinstance(content, Mistake):
      yield content
    elif users is not None and number <= len(users):
      user = users[number - 1].item()
      if not isinstance(content, dict) or content.get("user_id") != user:
        text = f'expected an object with "user_id": {user}, the user on that line of {SEQUENCES}'
        yield Mistake("user_id", text, number)
  if users is not None and number != len(users):
    text = f"{number:,} lines; expected {len(users):,}, one for each of {SEQUENCES}"
    yield Mistake("length", text)


def _tables(source: Path, num_items: int | None, features: Sequence[str]) -> Problems:
  others = sorted(p.name for p in source.iterdir() if p.suffix in TABLES and p.name != TIMES)
  for name in dict.fromkeys([*features, *others]):
    if num_items is None:
      yield Problem(f"{name}: not looked into: how many items there are is not known", warning=True)
    else:
      named = name in features
      yield from _guarded(source, _table(source / name, name, num_items, named))


def _table(path: Path, name: str, num_items: int, named: bool) -> Problems:
  """A table that nobody named is judged where it has a row of features an item."""
  table = feature_tables.read_table(path)
  if not named and (table.ndim != 2 or len(table) != num_items + 1):
    text = f"of shape {list(table.shape)}, and {num_items:,} items take {num_items + 1:,} rows"
    yield Problem(f"{name}: not looked into: {text}", warning=True)
    return
  mistakes = list(feature_tables.table_mistakes(table, num_items))
  yield from _all(name, mistakes)
  if mistakes:
    return
  zero, again = _alike(name, table)
  if len(zero):
    yield _counted(f"{name}: items with a row of zeros", "row", zero)
  if len(again):
    yield _counted(f"{name}: items with the same row as one before", "row", again)


def _alike(name: str, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows of zeros, and others that are equal to an earlier one, compared by 64 bits of a hash."""
  digest_N = np.zeros(len(table), np.uint64)
  zero_N = np.zeros(len(table), bool)
  with tqdm(total=len(table) - 1, desc=name, unit="rows", delay=3, leave=False) as bar:
    for start, x in feature_tables.row_chunks(table):
      zero_N[start : start + len(x)] = ~x.any(axis=1)
      x += 0.0  # -0.0 is equal to 0.0, and other bytes
      digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in x]
      digest_N[start : start + len(x)] = np.frombuffer(b"".join(digests), np.uint64)
      bar.update(len(x))
  rows = 1 + np.flatnonzero(~zero_N[1:])
  _, first = np.unique(digest_N[rows], return_index=True)
  return np.flatnonzero(zero_N), np.setdiff1d(rows, rows[first])


def _counted(text: str, unit: str, places: np.ndarray) -> Problem:
  """A warning that says how many there are, and where the first."""
  shown = ", ".join(map(str, places[:SHOWN].tolist())) + ", ..." * (len(places) > SHOWN)
  return Problem(f"{text}: {len(places):,} ({unit}{'s' * (len(places) > 1)} {shown})", warning=True)
