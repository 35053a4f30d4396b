"""Brings the user's own vectors into the order of a data set's items, by key: `vectors join`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mmesid_jax.data.folder.file_names import ITEMS, refuse_data_file
from mmesid_jax.data.folder.keys import item_keys
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.features.keyed_vectors import KeyedVectors, read_keyed_table, read_tensor_per_key
from mmesid_jax.files import feature_table
from mmesid_jax.files.atomic import check_new_file

MAX_NAMED = 3  # keys that a message gives as examples
DTYPES = {"bfloat16": ml_dtypes.bfloat16}  # that numpy does not know by name


def join_vectors(
  data: Path,
  vectors: Sequence[Path],
  output: Path,
  *,
  keys: Sequence[Path],
  key: str,
  key_column: str | None,
  vector_columns: list[str] | None,
  dtype: str,
  missing: str,
  overwrite: bool = False,
) -> None:
  """Writes a table whose row i is the vector of item i, and reports what was found.

  Args:
    data: the folder of the data set, with items.jsonl.
    vectors: .parquet, .npy or .safetensors files.
    output: the .npy or .safetensors file to write.
    keys: one file of keys per file of vectors, or none where the files hold their own keys.
    key: the field of items.jsonl that holds the key.
    key_column, vector_columns: columns of .parquet; None to find them by type.
    dtype: float16, float32 or bfloat16.
    missing: what an item without a vector gets: "zero", "mean", or "error" to refuse it.
    overwrite: whether a file that exists is replaced.

  Raises UserError as `join_by_key` does, and for flags that do not fit the files.
  """
  dtype = np.dtype(DTYPES.get(dtype, dtype))
  feature_table.check_table_file(output, dtype)
  refuse_data_file(output)
  check_new_file(output, overwrite=overwrite, inputs=[data / ITEMS, *vectors, *keys])
  parquet = {path for path in vectors if path.suffix == ".parquet"}
  for flag, value in {"--key_column": key_column, "--vector_columns": vector_columns}.items():
    if value and not parquet:
      raise UserError(f"{flag} is for .parquet; {vectors[0]} has no columns")
  if keys and (parquet or len(keys) != len(vectors)):
    raise UserError(
      "--keys: give it once for every --vectors, in the same order; .parquet holds its own keys"
    )
  catalogue = item_keys(data, key)
  sources = [
    open_vectors(path, keys_path, key_column, vector_columns)
    for path, keys_path in zip(vectors, keys or [None] * len(vectors), strict=True)
  ]
  result = join_by_key(catalogue, sources, output, dtype=dtype, missing=missing)
  shape = f"[{len(catalogue) + 1}, {result.width}]"
  reporter.info(
    f"{output}: {shape} {dtype}, vectors of {result.num_found} of {len(catalogue)} items"
  )
  if result.missing:
    filling = {"zero": "zeros", "mean": "the mean of the others"}[missing]
    reporter.info(
      f"{len(result.missing)} items had none ({example_keys(result.missing)}): {filling}"
    )
  if result.unknown:
    reporter.info(
      f"{len(result.unknown)} keys belong to no item ({example_keys(result.unknown)}): left out"
    )


def open_vectors(
  path: Path, keys: Path | None, key_column: str | None, vector_columns: list[str] | None
) -> KeyedVectors:
  """Opens a file of vectors by its suffix. Raises UserError for other files and missing keys."""
  if path.suffix == ".parquet":
    # imports polars, which the other kinds do not need
    from mmesid_jax.features.parquet_vectors import read_parquet_vectors

    return read_parquet_vectors(path, key_column=key_column, vector_columns=vector_columns)
  if keys is not None:
    return read_keyed_table(path, keys)
  if path.suffix == ".safetensors":
    return read_tensor_per_key(path)
  if path.suffix == ".npy":
    raise UserError(f"{path}: holds no keys; give them with --keys=FILE, one for every row")
  raise UserError(
    f"{path}: unknown kind of vectors; expected .parquet, .npy or .safetensors (first convert "
    "files of PyTorch or pickle: python -m mmesid_jax.vectors convert)"
  )


class JoinResult(NamedTuple):
  """Counts and keys of a join."""

  width: int
  num_found: int  # items that have a vector
  missing: list[str]  # keys of items that have none
  unknown: list[str]  # keys of vectors that belong to no item


def join_by_key(
  keys: Sequence[str],
  sources: Sequence[KeyedVectors],
  output: Path,
  *,
  dtype: np.dtype,
  missing: str,
) -> JoinResult:
  """Writes the table [I, V] whose row i is the vector of keys[i - 1]; row 0 is zeros.

  Vectors of other keys are left out. The table is written through a memory map.

  Args:
    keys: of the items, [I].
    sources: the vectors and their keys.
    output: the .npy or .safetensors file to write.
    dtype: of the output.
    missing: what an item without a vector gets: "zero", "mean" (of all items' vectors), or "error".

  Raises UserError, and then writes nothing, for a key with two vectors, no common key, sources of
  different widths, a vector of an item that holds NaN, infinity, a number too large for `dtype` or
  only numbers too small for it, items without a vector when `missing` is "error", and as the writer
  of feature tables does.
  """
  _require_one_vector_per_key(sources)
  item_of = {key: item for item, key in enumerate(keys, start=1)}
  items = [np.array([item_of.get(key, 0) for key in s.keys]) for s in sources]
  has_vector = np.zeros(len(keys) + 1, bool)
  for items_E in items:
    has_vector[items_E] = True
  has_vector[0] = True  # padding is not an item
  unknown = [key for s in sources for key in s.keys if key not in item_of]
  absent = [keys[item - 1] for item in np.flatnonzero(~has_vector)]
  if len(absent) == len(keys):
    raise UserError(
      f"{sources[0].path}: none of its keys, such as {example_keys(unknown)}, belongs to an item; "
      f"the items have keys such as {example_keys(keys)}"
    )
  if absent and missing == "error":
    raise UserError(
      f"{len(absent)} of {len(keys)} items have no vector ({example_keys(absent)}); "
      "--missing=zero or --missing=mean fills them"
    )
  width = sources[0].width
  sum_V = np.zeros(width)
  bar = reporter.progress(label="join", total=sum(len(s.keys) for s in sources), unit="vectors")
  with feature_table.create_table(output, (len(keys) + 1, width), dtype) as table, bar:
    for source, items_E in zip(sources, items, strict=True):
      start = 0
      for x_EV in source.chunks():
        chunk_items_E = items_E[start : start + len(x_EV)]
        known = np.flatnonzero(chunk_items_E)
        table[chunk_items_E[known]] = _cast_finite(source, start + known, x_EV[known], dtype)
        if absent and missing == "mean":
          sum_V += np.float32(x_EV[known]).sum(axis=0, dtype=np.float64)
        start += len(x_EV)
        bar.update(len(x_EV))
    table[~has_vector] = (sum_V / (len(keys) - len(absent))).astype(dtype)
  return JoinResult(width, len(keys) - len(absent), absent, unknown)


def example_keys(keys: Sequence[str]) -> str:
  """Returns the first keys, for a message."""
  return ", ".join(map(repr, keys[:MAX_NAMED])) + (", ..." if len(keys) > MAX_NAMED else "")


def _require_one_vector_per_key(sources: Sequence[KeyedVectors]) -> None:
  """Raises UserError for a key with two vectors, and for sources of different widths."""
  first_place: dict[str, tuple[Path, int]] = {}
  for source in sources:
    if source.width != sources[0].width:
      raise UserError(
        f"{source.path}: vectors are {source.width} wide, those of {sources[0].path} are "
        f"{sources[0].width}"
      )
    for row, key in enumerate(source.keys):
      path, first_row = first_place.setdefault(key, (source.path, row))
      if (path, first_row) != (source.path, row):
        raise UserError(
          f"{source.path}: key {key!r} has two vectors, row {first_row} of {path} and row {row}"
        )


def _cast_finite(
  source: KeyedVectors, rows_E: np.ndarray, x_EV: np.ndarray, dtype: np.dtype
) -> np.ndarray:
  """Returns the vectors of these rows as `dtype`. Raises UserError unless all are finite, and none
  becomes zeros by it."""
  cast_EV, lost_E = feature_table.cast_rows(x_EV, dtype)
  bad = np.flatnonzero(lost_E | ~np.isfinite(cast_EV).all(axis=1))
  if len(bad):
    row = rows_E[bad[0]]
    remedy = "--dtype=float32" if dtype == np.float16 else "scale all vectors"
    reason = f"a number too large for {dtype}; {remedy}"
    if lost_E[bad[0]]:
      reason = f"only numbers too small for {dtype}; {remedy}"
    elif not np.isfinite(x_EV[bad[0]]).all():
      reason = "NaN or infinity"
    raise UserError(f"{source.path}: row {row}, key {source.keys[row]!r}, holds {reason}")
  return cast_EV
