"""Checks a dataset folder: lists all mistakes at once, and warns of what may not be intended."""

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmesid_jax.data import features as feature_tables
from mmesid_jax.data.folder import items, keys, sequences, times
from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES, USERS
from mmesid_jax.data.folder.problems import (
  NOT_JSON,
  NOT_UNICODE,
  SHOWN,
  Mistake,
  format_problems,
  read_json_lines,
)
from mmesid_jax.data.repeats import count_held_out_repeats, describe_repeats
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import read_npy

TABLES = (".npy", ".safetensors")


class Problem(NamedTuple):
  """One line of the report. A warning does not prevent training."""

  text: str
  warning: bool = False

  def __str__(self) -> str:
    return f"warning: {self.text}" if self.warning else self.text


Problems = Iterator[Problem]


def check_folder(directory: str | os.PathLike, features: Sequence[str] = ()) -> None:
  """Prints all problems of a folder. Raises UserError when one is more than a warning."""
  errors = 0
  for problem in find_problems(directory, features):
    errors += not problem.warning
    reporter.info(str(problem))
  if errors:
    kinds = "a mistake" if errors == 1 else f"{errors} kinds of mistakes"
    raise UserError(f"{directory}: cannot be used for training because of {kinds}; see above")
  reporter.info(f"{directory}: ready for training")


def find_problems(directory: str | os.PathLike, features: Sequence[str] = ()) -> Problems:
  """Yields the problems of sequences.txt, items.jsonl, users.jsonl, times.npy and feature tables.

  Tables are the named ones in `features`, and others in the folder with one row per item. There is
  one line per kind of mistake, with the first three places and the number. Raises UserError for a
  directory that does not exist.
  """
  source = Path(directory)
  if not source.is_dir():
    raise UserError(f"{source}: no such directory; expected one that holds {SEQUENCES}")
  described = yield from _catch_user_error(source, _items_problems(source))
  users = yield from _catch_user_error(source, _sequences_problems(source, described))
  num_items = described or (users and int(users.items.max()))
  yield from _catch_user_error(source, _times_problems(source, users))
  yield from _catch_user_error(source, _users_problems(source, users))
  yield from _tables_problems(source, num_items, features)


def _catch_user_error(source: Path, part: Generator) -> Generator[Problem, None, object]:
  """Yields the problems of a part, and its UserError as one more; returns the part's result."""
  try:
    return (yield from part)
  except UserError as error:
    yield Problem(str(error).removeprefix(f"{source}{os.sep}"))


def _to_problems(file: str, mistakes: Iterable[Mistake], *, warning: bool = False) -> Problems:
  return (Problem(line, warning) for line in format_problems(file, mistakes))


def _items_problems(source: Path) -> Generator[Problem, None, int | None]:
  """Returns the number of items that items.jsonl describes; None when there are none."""
  path = source / ITEMS
  if not path.exists():
    return None
  yield from _to_problems(ITEMS, _only_mistakes(items.scan_items(path)))
  return (yield from _keys_problems(path)) or None


def _keys_problems(path: Path) -> Generator[Problem, None, int]:
  """Warns of missing and repeated keys, unless no line has a key. Returns the number of lines.

  Lines that no reader takes are left out: another check reports them.
  """
  entries = list(keys.scan_keys(read_json_lines(path)))
  if any(isinstance(key, str) for key in entries):
    mistakes = (x for x in _only_mistakes(entries) if x.kind not in (NOT_JSON, NOT_UNICODE))
    yield from _to_problems(path.name, mistakes, warning=True)
  return len(entries)


def _only_mistakes(entries: Iterable[object]) -> Iterator[Mistake]:
  return (x for x in entries if isinstance(x, Mistake))


def _sequences_problems(
  source: Path, described: int | None
) -> Generator[Problem, None, sequences.Sequences | None]:
  """Returns the sequences, if every line is numbers."""
  users, mistakes = sequences.scan_sequences(source / SEQUENCES, described)
  yield from _to_problems(SEQUENCES, mistakes)
  if users is None:
    return None
  short = np.flatnonzero(np.diff(users.offsets) < 3)
  if len(short) == len(users.users) and not (source / TIMES).exists():
    yield Problem(
      f"{SEQUENCES}: no user has a validation or test target; the leave-one-out split takes them "
      "of users with 3 items or more"
    )
  elif len(short):
    text = "users with fewer than 3 items, whom leave-one-out does not evaluate"
    yield _count_warning(f"{SEQUENCES}: {text}", "line", short + 1)
  repeats = describe_repeats(count_held_out_repeats(users.items, users.offsets))
  if repeats:
    yield Problem(f"{SEQUENCES}: {repeats}", warning=True)
  if described:
    in_range = users.items[(users.items >= 1) & (users.items <= described)]
    unused = np.flatnonzero(np.bincount(in_range, minlength=described + 1)[1:] == 0) + 1
    if len(unused):
      yield _count_warning(f"{ITEMS}: items that no user has", "line", unused)
  return users


def _times_problems(source: Path, users: sequences.Sequences | None) -> Problems:
  if not (source / TIMES).exists():
    return
  array = read_npy(source / TIMES)
  if users is None:
    yield Problem(f"{TIMES}: not compared with {SEQUENCES}, correct that first", warning=True)
  else:
    yield from _to_problems(TIMES, times.times_mistakes(array, users.offsets))


def _users_problems(source: Path, users: sequences.Sequences | None) -> Problems:
  path = source / USERS
  if not path.exists():
    return
  ids = None if users is None else users.users
  yield from _to_problems(USERS, _user_id_mistakes(read_json_lines(path), ids))
  yield from _keys_problems(path)


def _user_id_mistakes(
  lines: Iterable[tuple[int, object]], users: np.ndarray | None
) -> Iterator[Mistake]:
  """Compares line n with the user id on line n of sequences.txt, if `users` [U] are known."""
  number = 0
  for number, value in lines:
    if isinstance(value, Mistake):
      yield value
    elif users is not None and number <= len(users):
      user = users[number - 1].item()
      if not isinstance(value, dict) or value.get("user_id") != user:
        text = f'expected an object with "user_id": {user}, the user on that line of {SEQUENCES}'
        yield Mistake("user_id", text, number)
  if users is not None and number != len(users):
    text = f"{number:,} lines; expected {len(users):,}, one for each of {SEQUENCES}"
    yield Mistake("length", text)


def _tables_problems(source: Path, num_items: int | None, features: Sequence[str]) -> Problems:
  others = sorted(p.name for p in source.iterdir() if p.suffix in TABLES and p.name != TIMES)
  for name in dict.fromkeys([*features, *others]):
    if num_items is None:
      yield Problem(f"{name}: not checked: the number of items is not known", warning=True)
    else:
      named = name in features
      problems = _table_problems(source / name, name, num_items, named)
      yield from _catch_user_error(source, problems)


def _table_problems(path: Path, name: str, num_items: int, named: bool) -> Problems:
  """Checks a table; one that was not named is only checked if it has one row per item."""
  table = feature_tables.read_table(path)
  if not named and (table.ndim != 2 or len(table) != num_items + 1):
    text = f"its shape is {list(table.shape)}, but {num_items:,} items need {num_items + 1:,} rows"
    yield Problem(f"{name}: not checked: {text}", warning=True)
    return
  mistakes = list(feature_tables.table_mistakes(table, num_items))
  yield from _to_problems(name, mistakes)
  if mistakes:
    return
  zero, repeated = _zero_and_repeated_rows(name, table)
  if len(zero):
    yield _count_warning(f"{name}: items with a row of zeros", "row", zero)
  if len(repeated):
    yield _count_warning(f"{name}: items with the same row as an earlier one", "row", repeated)


def _zero_and_repeated_rows(name: str, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows of zeros, and other rows equal to an earlier one by a 64-bit hash."""
  digest_E = np.zeros(len(table), np.uint64)
  zero_E = np.zeros(len(table), bool)
  with reporter.progress(label=name, total=len(table) - 1, unit="rows") as bar:
    for start, x in feature_tables.row_chunks(table):
      zero_E[start : start + len(x)] = ~x.any(axis=1)
      x += 0.0  # -0.0 equals 0.0 but has other bytes
      digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in x]
      digest_E[start : start + len(x)] = np.frombuffer(b"".join(digests), np.uint64)
      bar.update(len(x))
  rows = 1 + np.flatnonzero(~zero_E[1:])
  _, first = np.unique(digest_E[rows], return_index=True)
  return np.flatnonzero(zero_E), np.setdiff1d(rows, rows[first])


def _count_warning(text: str, unit: str, places: np.ndarray) -> Problem:
  """Makes a warning with the number of places and the first few of them."""
  shown = ", ".join(map(str, places[:SHOWN].tolist())) + ", ..." * (len(places) > SHOWN)
  return Problem(f"{text}: {len(places):,} ({unit}{'s' * (len(places) > 1)} {shown})", warning=True)
