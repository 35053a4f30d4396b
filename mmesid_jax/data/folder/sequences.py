"""Reads sequences.txt: one user per line, `user item item ...`, oldest first, item ids from 1."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.folder.file_names import ITEMS
from mmesid_jax.data.folder.problems import Mistake, quote, raise_first
from mmesid_jax.display import reporter
from mmesid_jax.files.readers import read_bytes

MAX_ITEM = np.iinfo(np.int32).max
MAX_USER = np.iinfo(np.int64).max
FORM = "expected `user item item ...`"


class Sequences(NamedTuple):
  """The contents of sequences.txt. User row u's items are items[offsets[u]:offsets[u + 1]]."""

  users: np.ndarray  # int64 [U]
  items: np.ndarray  # int32 [interactions]
  offsets: np.ndarray  # int64 [U + 1]


def read_sequences(path: str | os.PathLike, num_items: int | None = None) -> Sequences:
  """Reads sequences.txt; items are from 1 to `num_items`, or any int32 when that is None.

  Raises UserError naming the line: a missing or empty file, a line that is not integers, a user
  without items, an item id out of range, a user that is already on an earlier line.
  """
  sequences, mistakes = scan_sequences(path, num_items)
  raise_first(path, mistakes)
  return Sequences(sequences.users, sequences.items.astype(np.int32), sequences.offsets)


def scan_sequences(
  path: str | os.PathLike, num_items: int | None
) -> tuple[Sequences | None, Iterator[Mistake]]:
  """Returns the sequences, with items as int64, and all mistakes.

  The sequences are None where a line is not at least two numbers. Raises UserError for a file that
  cannot be read.
  """
  data = read_bytes(Path(path))
  if not data.strip():
    text = "is empty; expected a line `user item item ...` for every user"
    return None, iter([Mistake("empty", text)])
  data = data if data.endswith(b"\n") else data + b"\n"
  sequences = _parse(data)
  max_item = MAX_ITEM if num_items is None else num_items
  if sequences is not None and _is_valid(sequences, max_item):
    return sequences, iter(())
  return sequences, _mistakes(data, num_items)


def _parse(data: bytes) -> Sequences | None:
  """Parses digits and white space with at least two numbers per line; None for anything else."""
  if data.translate(None, b"0123456789 \t\r\n"):
    return None
  characters = np.frombuffer(data, np.uint8)
  is_digit = characters > ord(" ")
  starts = np.flatnonzero(is_digit & ~np.concatenate([[False], is_digit[:-1]]))
  line_ends = np.searchsorted(starts, np.flatnonzero(characters == ord("\n")))
  counts = np.diff(line_ends, prepend=0)
  if counts.min() < 2:
    return None
  numbers = np.fromstring(data, np.int64, sep=" ")
  is_user = np.zeros(len(numbers), bool)
  is_user[line_ends - counts] = True
  offsets = np.concatenate([[0], np.cumsum(counts - 1)])
  return Sequences(numbers[is_user], numbers[~is_user], offsets)


def _is_valid(sequences: Sequences, max_item: int) -> bool:
  in_range = sequences.items.min() >= 1 and sequences.items.max() <= max_item
  # numpy reads a number too large for int64 as the largest int64: `_mistakes` decides about those
  return (
    in_range
    and sequences.users.max() < MAX_USER
    and len(np.unique(sequences.users)) == len(sequences.users)
  )


def _mistakes(data: bytes, num_items: int | None) -> Iterator[Mistake]:
  """Yields all mistakes of a file that is known to have some, line by line."""
  first_line: dict[int, int] = {}  # of every user
  any_mistake = False
  lines = reporter.progress(data.split(b"\n")[:-1], "sequences", unit="lines")
  for number, line in enumerate(lines, start=1):
    # the same white space as `_parse`; Unicode has more
    tokens = [token.decode("utf-8", "replace") for token in re.findall(rb"[^ \t\r]+", line)]
    for kind, text in _line_mistakes(tokens, number, num_items, first_line):
      any_mistake = True
      yield Mistake(kind, text, number)
  if not any_mistake:
    raise AssertionError("the fast path refused a file without mistakes")


def _line_mistakes(
  tokens: list[str], number: int, num_items: int | None, first_line: dict[int, int]
) -> Iterator[tuple[str, str]]:
  """Yields kind and text of every mistake in a line; adds its user to `first_line`."""
  for token in tokens:
    if not re.fullmatch(r"-?[0-9]+", token):
      yield "not an integer", f"{quote(token)} is not an integer; {FORM}"
      return
  if not tokens:
    yield "blank", f"is blank; {FORM}"
    return
  user, *items = map(_to_int, tokens)
  if not 0 <= user < MAX_USER or tokens[0].startswith("-"):
    yield "user", f"user id {quote(tokens[0])} is out of range; expected 0 to 2^63 - 2"
  if not items:
    yield "no items", f"user {user} has no items; {FORM}"
  for item, token in zip(items, tokens[1:], strict=True):
    if item < 1:
      yield "item below 1", f"item id {quote(token)}; ids count from 1, 0 is padding"
    elif num_items is not None and item > num_items:
      yield "no such item", f"item id {quote(token)}, but {ITEMS} holds only {num_items} items"
    elif item > MAX_ITEM:
      yield "large item", f"item id {quote(token)}; the largest possible is {MAX_ITEM}"
  if first_line.setdefault(user, number) != number:
    text = f"user {user} is already on line {first_line[user]}; expected one line per user"
    yield "user again", text


def _to_int(token: str) -> int:
  """Converts a token of any length; with more than 30 digits it is out of range anyway."""
  return int(token[:30])
