"""Vectors brought into the order of a data set's items, by their keys."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmesid_jax.errors import UserError
from mmesid_jax.features.keyed_vectors import KeyedVectors
from mmesid_jax.files import feature_table

NAMED = 3  # keys that a message gives as examples
MISSING = ("error", "zero", "mean")


class JoinResult(NamedTuple):
  """What became of the vectors, and of the items."""

  width: int
  found: int  # items that have a vector
  missing: list[str]  # keys of items that have none
  unknown: list[str]  # keys of vectors that are of no item


def join_by_key(
  keys: Sequence[str],
  sources: Sequence[KeyedVectors],
  output: Path,
  *,
  dtype: np.dtype,
  missing: str,
) -> JoinResult:
  """Writes the table [I + 1, V] whose row i is the vector of keys[i - 1], row 0 zeros.

  `missing`, one of MISSING: what an item without a vector gets, nothing, zeros or the mean of all
  items' vectors. Vectors of other keys are left out. The table is written through a memory map.

  Raises UserError for a key that has two vectors, no key that both sides know, sources of different
  widths, NaN, infinity and what `dtype` turns into infinity in the vector of an item, items without
  vectors where `missing` says so, and what `table_file.creating` refuses; then nothing is written.
  """
  _require_one_vector_per_key(sources)
  item_of = {key: item for item, key in enumerate(keys, start=1)}
  items = [np.array([item_of.get(key, 0) for key in s.keys]) for s in sources]
  has = np.zeros(len(keys) + 1, bool)
  for items_N in items:
    has[items_N] = True
  has[0] = True  # padding is no item
  unknown = [key for s in sources for key in s.keys if key not in item_of]
  absent = [keys[item - 1] for item in np.flatnonzero(~has)]
  if len(absent) == len(keys):
    raise UserError(
      f"{sources[0].path}: none of the keys, such as {example_keys(unknown)}, is of an item; items' "
      f"keys are such as {example_keys(keys)}"
    )
  if absent and missing == "error":
    raise UserError(
      f"{len(absent)} of {len(keys)} items have no vector ({example_keys(absent)}); --missing=zero or "
      "--missing=mean fills them"
    )
  width = sources[0].width
  sum_V = np.zeros(width)
  with feature_table.creating(output, (len(keys) + 1, width), dtype) as table, _bar(sources) as bar:
    for source, items_N in zip(sources, items, strict=True):
      start = 0
      for x_NV in source.chunks():
        to_N = items_N[start : start + len(x_NV)]
        wanted = np.flatnonzero(to_N)
        table[to_N[wanted]] = _cast_finite(source, start + wanted, x_NV[wanted], dtype)
        if absent and missing == "mean":
          sum_V += np.float32(x_NV[wanted]).sum(axis=0, dtype=np.float64)
        start += len(x_NV)
        bar.update(len(x_NV))
    table[~has] = (sum_V / (len(keys) - len(absent))).astype(dtype)
  return JoinResult(width, len(keys) - len(absent), absent, unknown)


def example_keys(keys: Sequence[str]) -> str:
  """The first few, for a message."""
  return ", ".join(map(repr, keys[:NAMED])) + (", ..." if len(keys) > NAMED else "")


def _require_one_vector_per_key(sources: Sequence[KeyedVectors]) -> None:
  first: dict[str, tuple[Path, int]] = {}
  for source in sources:
    if source.width != sources[0].width:
      raise UserError(
        f"{source.path}: vectors are {source.width} wide, those of {sources[0].path} are "
        f"{sources[0].width}"
      )
    for row, key in enumerate(source.keys):
      path, earlier = first.setdefault(key, (source.path, row))
      if (path, earlier) != (source.path, row):
        raise UserError(
          f"{source.path}: key {key!r} has two vectors, row {earlier} of {path} and row {row}"
        )


def _cast_finite(
  source: KeyedVectors, rows_N: np.ndarray, x_NV: np.ndarray, dtype: np.dtype
) -> np.ndarray:
  """The vectors of these rows as `dtype`, all finite. Raises UserError for others."""
  with np.errstate(over="ignore"):
    cast_NV = x_NV.astype(dtype)
  bad = np.flatnonzero(~np.isfinite(cast_NV).all(axis=1))
  if len(bad):
    row = rows_N[bad[0]]
    fits = not np.isfinite(x_NV[bad[0]]).all()
    reason = "NaN or infinity" if fits else f"a number too large for {dtype}; --dtype=float32"
    raise UserError(f"{source.path}: row {row}, key {source.keys[row]!r}, holds {reason}")
  return cast_NV


def _bar(sources: Sequence[KeyedVectors]) -> tqdm:
  total = sum(len(source.keys) for source in sources)
  return tqdm(desc="joining", total=total, unit="vectors", delay=3, leave=False)
