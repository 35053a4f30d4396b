"""Reads one table of vectors from a file of PyTorch or pickle: `vectors convert`."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.folder.file_names import refuse_data_file
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.features.torch_files.arrays import PickledTensor
from mmesid_jax.features.torch_files.torch_file import (
  TorchFile,
  container_entries,
  open_torch_file,
)
from mmesid_jax.files import feature_table
from mmesid_jax.files.atomic import check_new_file, open_atomic
from mmesid_jax.files.readers import read_bytes

MAX_LISTED = 8  # tensors that an error names


def convert_torch_file(
  source: Path, output: Path, *, name: str | None, overwrite: bool = False
) -> None:
  """Writes the table of a file of PyTorch or pickle as .npy or .safetensors, in its own type.

  The keys, if the vectors are in a dict, are written next to it as OUTPUT.keys.json. `name`: which
  tensor; None for the only one. Raises UserError, unless `overwrite` also for a file that exists
  and for other keys under that name.
  """
  refuse_data_file(output)
  check_new_file(output, overwrite=overwrite, inputs=[source])
  x_EV, keys = read_torch_table(open_torch_file(source), name)
  keys_path = output.with_name(f"{output.stem}.keys.json")
  content = None if keys is None else json.dumps(keys).encode()
  if not overwrite and keys_path.exists() and read_bytes(keys_path) != content:
    raise UserError(
      f"{keys_path}: exists and holds other keys than those of {source}; move it away, choose "
      "another --output, or pass --overwrite"
    )
  with contextlib.ExitStack() as both:  # the keys get their name once the table has its own
    if content is not None:
      both.enter_context(open_atomic(keys_path)).write(content)
    feature_table.write_feature_table(output, x_EV)
  reporter.info(f"{output}: {list(x_EV.shape)} {x_EV.dtype.name}")
  if keys is not None:
    reporter.info(f"{keys_path}: the keys of its rows, for join --keys={keys_path}")


class TorchTable(NamedTuple):
  """Vectors, and their keys if they were in a dict."""

  x_EV: np.ndarray
  keys: list[str | int] | None


def read_torch_table(saved: TorchFile, name: str | None) -> TorchTable:
  """Returns the table of this name, or the only one.

  A table is a 2-d tensor, or a dict or list of vectors of one width: 1-d tensors or lists of
  numbers (read as float32), in their order.

  Raises UserError, which lists the tensors of the file, for an unknown name, several tensors
  without a name, vectors of different widths or types, and a tensor that is not 2-d.
  """
  if name is None:
    value, where = saved.value, str(saved.path)
  else:
    value, where = _value_named(saved, name), f"{saved.path}: {name}"
  keys = None
  if vectors := _vectors_in(saved, value):
    x_EV = _stack_vectors(saved, where, vectors)
    keys = list(value) if isinstance(value, dict) else None
  else:
    is_tensor = isinstance(value, PickledTensor)
    tensors = [value] if is_tensor else [tensor for _, tensor in _named_tensors(saved)]
    if len(tensors) != 1 or (name is not None and value is not tensors[0]):
      raise UserError(f"{where}: which table? Say --name=TENSOR; it holds {_list_tensors(saved)}")
    x_EV = saved.array(tensors[0])
  if x_EV.ndim != 2 or not x_EV.size or x_EV.dtype == bool:
    kind = f"{x_EV.dtype} of shape {list(x_EV.shape)}"
    raise UserError(f"{where}: {kind}; expected numbers of shape [items, width], each at least 1")
  return TorchTable(x_EV, keys)


def _value_named(saved: TorchFile, name: str) -> object:
  for known, value in saved.named():
    if known == name:
      return value
  raise UserError(f"--name={name}: not in {saved.path}, which holds {_list_tensors(saved)}")


def _named_tensors(saved: TorchFile) -> Iterator[tuple[str, PickledTensor]]:
  """Yields the tensors and their names, without single numbers."""
  for name, value in itertools.chain([("", saved.value)], saved.named()):
    if isinstance(value, PickledTensor) and value.shape:
      yield name, value


def _list_tensors(saved: TorchFile) -> str:
  """Returns names and shapes of the first tensors, for a message."""
  tensors = _named_tensors(saved)
  first = [f"{name[:80]} {list(x.shape)}" for name, x in itertools.islice(tensors, MAX_LISTED)]
  num_others = sum(1 for _ in tensors)
  listed = ", ".join(first) + (f" and {num_others} more" if num_others else "")
  return listed or "no array or tensor"


def _vectors_in(saved: TorchFile, value: object) -> list[PickledTensor | list]:
  """Returns the entries of a container if all of them are vectors, else an empty list."""
  values = [inner for _, inner in container_entries(value)]
  if not all(isinstance(x, list) or _is_vector(x) for x in values):
    return []
  # one vector may be under many keys: a small file could ask for any amount of memory and time
  if sum(map(_vector_width, values)) > max(saved.size, 2**24):
    raise UserError(f"{saved.path}: its vectors together are larger than the file; damaged?")
  lists = (x for x in values if isinstance(x, list))
  return values if all(type(number) in (int, float) for x in lists for number in x) else []


def _is_vector(value: object) -> bool:
  return isinstance(value, PickledTensor) and len(value.shape) == 1


def _vector_width(vector: PickledTensor | list) -> int:
  return vector.shape[0] if isinstance(vector, PickledTensor) else len(vector)


def _stack_vectors(saved: TorchFile, where: str, vectors: list[PickledTensor | list]) -> np.ndarray:
  """Returns the vectors as one array. Raises UserError for different widths or types."""
  first = _to_array(saved, vectors[0])
  x_EV = np.empty((len(vectors), len(first)), first.dtype)
  for n, vector in enumerate(reporter.progress(vectors, "read", unit="vectors"), start=1):
    row = _to_array(saved, vector)
    if (len(row), row.dtype) != (len(first), first.dtype):
      raise UserError(
        f"{where}: vector 1 is {len(first)} wide, {first.dtype}; vector {n} is {len(row)}, "
        f"{row.dtype}; expected all alike"
      )
    x_EV[n - 1] = row
  return x_EV


def _to_array(saved: TorchFile, vector: PickledTensor | list) -> np.ndarray:
  if isinstance(vector, PickledTensor):
    return saved.array(vector)
  try:
    with np.errstate(over="ignore"):  # infinity is refused where the table is used
      return np.array(vector, np.float32)
  except OverflowError:
    raise UserError(f"{saved.path}: a vector holds a number that is too large") from None
