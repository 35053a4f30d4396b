"""Writes the files of a dataset folder; no other module formats their lines."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES, USERS
from mmesid_jax.data.folder.keys import KEY
from mmesid_jax.files.atomic import open_atomic
from mmesid_jax.files.feature_table import write_array

FIELDS = ("title", "brand", "categories", "description", "images")  # null where unknown


def sequence_line(user: int, items: Iterable[int]) -> bytes:
  """Formats a line of sequences.txt."""
  return f"{user} {' '.join(map(str, items))}\n".encode()


def user_line(user: int, key: str) -> bytes:
  """Formats a line of users.jsonl."""
  return json_line({"user_id": user, KEY: key})


def item_line(item: int, key: str, description: Mapping[str, Any]) -> bytes:
  """Formats a line of items.jsonl; `description` has a value for each of FIELDS."""
  fields = {name: description[name] for name in FIELDS}
  return json_line({"item_id": item, KEY: key, **fields})


def json_line(record: Mapping[str, Any]) -> bytes:
  """Formats a line of JSON in UTF-8. Its texts are Unicode: readers refuse any others."""
  return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def write_sequences(folder: Path, sequences: Iterable[tuple[int, Iterable[int]]]) -> None:
  """Writes sequences.txt from (user, items). Raises UserError when the disk refuses it."""
  _write_lines(folder / SEQUENCES, (sequence_line(user, items) for user, items in sequences))


def write_times(folder: Path, times: np.ndarray) -> None:
  """Writes times.npy, int64 [interactions]. Raises UserError when the disk refuses it."""
  write_array(folder / TIMES, times)


def write_item_records(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
  """Writes items.jsonl from one record per item, in order. Raises UserError as above."""
  _write_lines(folder / ITEMS, map(json_line, records))


def write_keyed_folder(
  folder: Path,
  *,
  items: np.ndarray,
  offsets: np.ndarray,
  times: np.ndarray | None,
  user_keys: Sequence[str],
  item_keys: Sequence[str],
  descriptions: Iterable[Mapping[str, Any]],
) -> None:
  """Writes sequences.txt, users.jsonl, items.jsonl and, if there are times, times.npy.

  Users get the ids 1..U and items the ids 1..I-1, in the order of their keys.

  Args:
    items: integer ids from 1, [interactions]: the users' sequences one after another.
    offsets: integer [U + 1]; user u + 1 has items[offsets[u]:offsets[u + 1]].
    times: int64 [interactions], seconds since 1970.
    descriptions: for every item, in order, a value for each of FIELDS.

  Raises UserError when the disk refuses a file.
  """
  bounds = zip(offsets[:-1], offsets[1:], strict=True)
  sequences = ((user, items[a:b].tolist()) for user, (a, b) in enumerate(bounds, start=1))
  write_sequences(folder, sequences)
  if times is not None:
    write_times(folder, times)
  users = enumerate(user_keys, start=1)
  _write_lines(folder / USERS, (user_line(user, key) for user, key in users))
  described = enumerate(zip(item_keys, descriptions, strict=True), start=1)
  _write_lines(folder / ITEMS, (item_line(item, key, fields) for item, (key, fields) in described))


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
  with open_atomic(path) as file:
    file.writelines(lines)
