"""The one table of vectors in what PyTorch or pickle saved."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mmesid_jax.errors import UserError
from mmesid_jax.features.torch_files.arrays import PickledTensor
from mmesid_jax.features.torch_files.torch_file import TorchFile, container_entries

MAX_LISTED = 8  # tensors that an error names


class TorchTable(NamedTuple):
  """Vectors, and their keys where they stood in a dict."""

  x_NV: np.ndarray
  keys: list[str | int] | None


def read_torch_table(saved: TorchFile, name: str | None) -> TorchTable:
  """The table of this name, or the only one.

  A table is a 2-d tensor, or a dict or list of vectors of one width: 1-d tensors or lists of
  numbers (float32), in their order. Raises UserError, which lists what there is, for a name that
  there is not, several tensors without a name, vectors of different widths or types, and a tensor
  of other dimensions.
  """
  if name is None:
    value, where = saved.value, str(saved.path)
  else:
    value, where = _value_named(saved, name), f"{saved.path}: {name}"
  keys = None
  if vectors := _vectors_in(saved, value):
    x_NV = _stack_vectors(saved, where, vectors)
    keys = list(value) if isinstance(value, dict) else None
  else:
    tensors = [value] if isinstance(value, PickledTensor) else [x for _, x in _named_tensors(saved)]
    if len(tensors) != 1 or (name is not None and value is not tensors[0]):
      raise UserError(f"{where}: which table? Say --name=TENSOR; it holds {_list_tensors(saved)}")
    x_NV = saved.array(tensors[0])
  if x_NV.ndim != 2 or not x_NV.size or x_NV.dtype == bool:
    found = f"{x_NV.dtype} of shape {list(x_NV.shape)}"
    raise UserError(f"{where}: {found}; expected numbers of shape [items, width]")
  return TorchTable(x_NV, keys)


def _value_named(saved: TorchFile, name: str) -> object:
  for known, value in saved.named():
    if known == name:
      return value
  raise UserError(f"--name={name}: not in {saved.path}, which holds {_list_tensors(saved)}")


def _named_tensors(saved: TorchFile) -> Iterator[tuple[str, PickledTensor]]:
  """By name; single numbers are none."""
  for name, value in itertools.chain([("", saved.value)], saved.named()):
    if isinstance(value, PickledTensor) and value.shape:
      yield name, value


def _list_tensors(saved: TorchFile) -> str:
  tensors = _named_tensors(saved)
  first = [f"{name[:80]} {list(x.shape)}" for name, x in itertools.islice(tensors, MAX_LISTED)]
  more = sum(1 for _ in tensors)
  return (", ".join(first) + (f" and {more} more" if more else "")) or "no array or tensor"


def _vectors_in(saved: TorchFile, value: object) -> list[PickledTensor | list]:
  """The entries of a container, where all are vectors; else none."""
  found = [inner for _, inner in container_entries(value)]
  if not all(
    isinstance(x, list) or (isinstance(x, PickledTensor) and len(x.shape) == 1) for x in found
  ):
    return []
  # one vector may stand under many keys: a small file could ask for any amount of memory and time
  if sum(map(_vector_width, found)) > max(saved.size, 2**24):
    raise UserError(f"{saved.path}: its vectors together are larger than the file; damaged?")
  lists = (x for x in found if isinstance(x, list))
  return found if all(type(number) in (int, float) for x in lists for number in x) else []


def _vector_width(vector: PickledTensor | list) -> int:
  return vector.shape[0] if isinstance(vector, PickledTensor) else len(vector)


def _stack_vectors(saved: TorchFile, where: str, vectors: list[PickledTensor | list]) -> np.ndarray:
  first = _to_array(saved, vectors[0])
  x_NV = np.empty((len(vectors), len(first)), first.dtype)
  for n, vector in enumerate(tqdm(vectors, "reading", delay=3, leave=False), start=1):
    row = _to_array(saved, vector)
    if (len(row), row.dtype) != (len(first), first.dtype):
      raise UserError(
        f"{where}: vector 1 is {len(first)} wide, {first.dtype}; vector {n} is {len(row)}, "
        f"{row.dtype}; expected all alike"
      )
    x_NV[n - 1] = row
  return x_NV


def _to_array(saved: TorchFile, vector: PickledTensor | list) -> np.ndarray:
  if isinstance(vector, PickledTensor):
    return saved.array(vector)
  try:
    with np.errstate(over="ignore"):  # infinity is told where the table is used
      return np.array(vector, np.float32)
  except OverflowError:
    raise UserError(f"{saved.path}: a vector holds a number that is too large") from None
