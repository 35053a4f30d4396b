"""A feature table, and beside it what it was made from."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.data.files import read_bytes, write_whole
from mmesid_jax.encoders.partial import check_made_from
from mmesid_jax.errors import UserError

CHUNK = 65536  # rows in memory at once


def write_table(
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
  for x_BV, lacks_B in _in_order(rows_NV, place_I):
    total_V += x_BV.sum(0, dtype=np.float64, where=~lacks_B[:, None])
    lacking += int(lacks_B.sum())
  if missing == "mean" and lacking < num_items:
    filling_V = (total_V / (num_items - lacking)).astype(rows_NV.dtype)

  def write(file) -> None:
    shape = (num_items + 1, rows_NV.shape[1])
    description = np.lib.format.dtype_to_descr(rows_NV.dtype)
    header = {"descr": description, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(np.zeros_like(filling_V).tobytes())
    for x_BV, lacks_B in _in_order(rows_NV, place_I):
      x_BV[lacks_B] = filling_V
      file.write(x_BV.tobytes())

  write_whole(path, write)
  return lacking


def _in_order(rows_NV: np.ndarray, place_I: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Rows [B, V] of items 1..I, chunk by chunk, and which of them are missing, [B]."""
  for at in range(1, len(place_I), CHUNK):
    place_B = place_I[at : at + CHUNK]
    x_BV = rows_NV[place_B]  # a copy; of place -1 the last row, which counts as missing
    yield x_BV, (place_B < 0) | np.isnan(x_BV[:, 0])


def record_path(table: Path) -> Path:
  return table.with_suffix(".json")


def write_record(table: Path, record: Mapping[str, Any]) -> None:
  """What the table was made from, and what came of it, as JSON beside it."""
  text = json.dumps(record, indent=1) + "\n"
  write_whole(record_path(table), lambda file: file.write(text.encode()))


def is_up_to_date(table: Path, made_from: Mapping[str, Any], *, overwrite: bool) -> bool:
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
