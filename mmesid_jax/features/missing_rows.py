"""A feature table, and beside it what it was made from."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import read_bytes, write_whole
from mmesid_jax.files.feature_table import creating
from mmesid_jax.files.partial_table import check_made_from

CHUNK_ROWS = 65536  # rows in memory at once


def write_filled_table(
  path: Path, rows_NV: np.ndarray, items_N: np.ndarray, num_items: int, missing: str
) -> int:
  """Writes [I + 1, V] in the rows' type, row 0 zero; row n of `rows_NV` is of item `items_N[n]`.

  An item without a row, or with one of NaN, has zeros where `missing` is "zero", the mean of the
  others' rows where it is "mean". Returns how many such items there are. Raises UserError where the
  disk refuses it.
  """
  place_I = np.full(num_items + 1, -1)
  place_I[items_N] = np.arange(len(items_N))
  filling_V, lacking = np.zeros(rows_NV.shape[1], rows_NV.dtype), 0
  total_V = np.zeros(rows_NV.shape[1])
  for _, x_BV, lacks_B in _chunks_by_item(rows_NV, place_I):
    total_V += x_BV.sum(0, dtype=np.float64, where=~lacks_B[:, None])
    lacking += int(lacks_B.sum())
  if missing == "mean" and lacking < num_items:
    filling_V = (total_V / (num_items - lacking)).astype(rows_NV.dtype)

  with creating(path, (num_items + 1, rows_NV.shape[1]), rows_NV.dtype) as table_IV:
    for items_B, x_BV, lacks_B in _chunks_by_item(rows_NV, place_I):
      x_BV[lacks_B] = filling_V
      table_IV[items_B] = x_BV
  return lacking


def _chunks_by_item(
  rows_NV: np.ndarray, place_I: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
  """Items 1..I chunk by chunk: which they are, their rows [B, V], and which of these are missing,
  [B]."""
  for at in range(1, len(place_I), CHUNK_ROWS):
    items_B = slice(at, at + CHUNK_ROWS)
    place_B = place_I[items_B]
    x_BV = rows_NV[place_B]  # a copy; of place -1 the last row, which counts as missing
    yield items_B, x_BV, (place_B < 0) | np.isnan(x_BV[:, 0])


def record_path(table: Path) -> Path:
  return table.with_suffix(".json")


def write_record(table: Path, record: Mapping[str, Any]) -> None:
  """What the table was made from, and what came of it, as JSON beside it."""
  text = json.dumps(record, indent=1) + "\n"
  write_whole(record_path(table), lambda file: file.write(text.encode()))


def is_table_up_to_date(table: Path, made_from: Mapping[str, Any], *, overwrite: bool) -> bool:
  """Whether there is a table made from this. Raises UserError where there is one made from
  something else, unless `overwrite`."""
  if not table.exists():
    return False
  record = record_path(table)
  try:
    check_made_from(table, read_bytes(record) if record.exists() else b"", made_from)
  except UserError:
    if not overwrite:
      raise
    return False
  return True
