"""Writes a feature table, fills its missing rows, and records what it was made from."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import open_atomic
from mmesid_jax.files.feature_table import create_table
from mmesid_jax.files.provenance import MADE_FROM, check_made_from
from mmesid_jax.files.readers import parse_json, read_bytes

CHUNK_ROWS = 65536  # rows in memory at once


def write_filled_table(
  path: Path,
  rows_EV: np.ndarray,
  items_E: np.ndarray,
  num_items: int,
  missing: str,
  record: Mapping[str, Any],
) -> int:
  """Writes the table [I, V] and its record; returns the number of items without a row.

  The record comes first: a table without one was written by somebody else.

  Args:
    path: .npy.
    rows_EV: rows in any order; their type is that of the table. A row of NaN counts as missing.
    items_E: the item of each row.
    num_items: I; row 0, for padding, is zeros.
    missing: what an item without a row gets: "zero", or "mean" of the others' rows.
    record: what the table was made from, and counts; the number of items without a row is added.

  Raises UserError if the disk refuses it.
  """
  place_I = np.full(num_items + 1, -1)
  place_I[items_E] = np.arange(len(items_E))
  filling_V, num_missing = np.zeros(rows_EV.shape[1], rows_EV.dtype), 0
  sum_V = np.zeros(rows_EV.shape[1])
  for _, x_BV, missing_B in _chunks_by_item(rows_EV, place_I):
    sum_V += x_BV.sum(0, dtype=np.float64, where=~missing_B[:, None])
    num_missing += int(missing_B.sum())
  if missing == "mean" and num_missing < num_items:
    filling_V = (sum_V / (num_items - num_missing)).astype(rows_EV.dtype)

  with create_table(path, (num_items + 1, rows_EV.shape[1]), rows_EV.dtype) as table_IV:
    for items_B, x_BV, missing_B in _chunks_by_item(rows_EV, place_I):
      x_BV[missing_B] = filling_V
      table_IV[items_B] = x_BV
    write_record(path, {**record, "missing": num_missing})
  return num_missing


def _chunks_by_item(
  rows_EV: np.ndarray, place_I: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
  """Yields items 1..I-1 in chunks: slice, rows [B, V], and whether each row is missing [B]."""
  for at in range(1, len(place_I), CHUNK_ROWS):
    items_B = slice(at, at + CHUNK_ROWS)
    place_B = place_I[items_B]
    x_BV = rows_EV[place_B]  # a copy; place -1 reads the last row, but counts as missing
    yield items_B, x_BV, (place_B < 0) | np.isnan(x_BV[:, 0])


def record_path(table: Path) -> Path:
  """Returns the path of the JSON record next to the table."""
  return table.with_suffix(".json")


def write_record(table: Path, record: Mapping[str, Any]) -> None:
  """Writes what the table was made from, and counts of its rows, as JSON next to it."""
  text = json.dumps(record, indent=1) + "\n"
  with open_atomic(record_path(table)) as file:
    file.write(text.encode())


def check_record(table: Path) -> None:
  """Raises UserError where another program wrote the file in the place of the table's record."""
  record = record_path(table)
  try:
    before = parse_json(read_bytes(record)) if record.exists() else {MADE_FROM: {}}
  except ValueError:
    before = None
  if not isinstance(before, dict) or MADE_FROM not in before:
    raise UserError(
      f"{record}: would be replaced by the record of {table.name}, and another program wrote it; "
      "choose another --output"
    )


def is_table_up_to_date(table: Path, made_from: Mapping[str, Any], *, overwrite: bool) -> bool:
  """Returns whether the table exists and was made from this.

  Raises UserError for a table that was made from something else, unless `overwrite`.
  """
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
