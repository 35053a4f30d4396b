"""What the command `vectors` does: opens the user's files, writes a table, says what became of
them."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from mmesid_jax.data.folder.keys import item_keys
from mmesid_jax.errors import UserError, report_disk_errors
from mmesid_jax.features import join_by_key, keyed_vectors
from mmesid_jax.features.torch_files.torch_file import open_torch_file
from mmesid_jax.features.torch_files.torch_table import read_torch_table
from mmesid_jax.files import feature_table
from mmesid_jax.files.atomic import write_whole

DTYPES = {"bfloat16": ml_dtypes.bfloat16}


def join(
  data: Path,
  vectors: list[Path],
  output: Path,
  *,
  keys: list[Path],
  key: str,
  key_column: str | None,
  vector_columns: list[str] | None,
  dtype: str,
  missing: str,
) -> None:
  """Writes the vectors in the order of the data set's items. Raises UserError."""
  dtype = np.dtype(DTYPES.get(dtype, dtype))
  feature_table.check(output, dtype)
  parquet = {path for path in vectors if path.suffix == ".parquet"}
  columns = {"--key_column": key_column, "--vector_columns": vector_columns}
  for flag, value in columns.items():
    if value and not parquet:
      raise UserError(f"{flag} is for .parquet; {vectors[0]} has no columns")
  if keys and (parquet or len(keys) != len(vectors)):
    raise UserError(
      "--keys: give it once for every --vectors, in the same order; .parquet holds its own keys"
    )
  catalogue = item_keys(data, key)
  if not keys:
    keys = [None] * len(vectors)
  sources = [
    _opened(path, path_of_keys, key_column, vector_columns)
    for path, path_of_keys in zip(vectors, keys, strict=True)
  ]
  done = join_by_key.join_by_key(catalogue, sources, output, dtype=dtype, missing=missing)
  shape = f"[{len(catalogue) + 1}, {done.width}]"
  print(f"{output}: {shape} {dtype}, vectors of {done.found} of {len(catalogue)} items")
  if done.missing:
    filled = {"zero": "zeros", "mean": "the mean of the others"}[missing]
    print(
      f"{len(done.missing)} items had none ({join_by_key.example_keys(done.missing)}): {filled}"
    )
  if done.unknown:
    print(
      f"{len(done.unknown)} keys are of no item ({join_by_key.example_keys(done.unknown)}): left out"
    )


def _opened(
  path: Path, keys: Path | None, key_column: str | None, vector_columns: list[str] | None
) -> keyed_vectors.KeyedVectors:
  if path.suffix == ".parquet":
    from mmesid_jax.features.parquet_vectors import (
      read_parquet_vectors,  # polars, which nothing else here needs
    )

    return read_parquet_vectors(path, key_column=key_column, vector_columns=vector_columns)
  if keys is not None:
    return keyed_vectors.read_keyed_table(path, keys)
  if path.suffix == ".safetensors":
    return keyed_vectors.read_tensor_per_key(path)
  if path.suffix == ".npy":
    raise UserError(f"{path}: --keys=FILE must say whose rows these are")
  raise UserError(
    f"{path}: unknown kind of vectors; expected .parquet, .npy or .safetensors (first convert what "
    "PyTorch or pickle saved: python -m mmesid_jax.vectors convert)"
  )


def convert(source: Path, output: Path, *, name: str | None) -> None:
  """Writes the table that PyTorch or pickle saved, with its own type, and beside it the keys where
  it was a dict of vectors. Raises UserError."""
  x_NV, keys = read_torch_table(open_torch_file(source), name)
  path = output.with_name(f"{output.stem}.keys.json")
  text = json.dumps(keys).encode()
  with report_disk_errors(path):
    path.unlink(missing_ok=True)  # those of an earlier table
  feature_table.write(output, x_NV)
  print(f"{output}: {list(x_NV.shape)} {x_NV.dtype.name}")
  if keys is not None:
    write_whole(path, lambda file: file.write(text))
    print(f"{path}: the keys of its rows, for join --keys={path}")
