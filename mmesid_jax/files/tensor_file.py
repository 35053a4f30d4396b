"""Reads .safetensors files; one that is damaged or of another kind ends in one line."""

import os
from pathlib import Path

import ml_dtypes  # noqa: F401  gives numpy the type bfloat16
import numpy as np
import safetensors

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import check_regular_file

# safetensors' names of the types that are read -> numpy's; others are float8, float6 and float4
TYPES = {
  **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"},
  **{f"{kind[0].upper()}{n}": f"{kind}{n}" for kind in ("int", "uint") for n in (8, 16, 32, 64)},
}


class TensorFile:
  """The tensors of a file, read one by one. Opening it reads the header only.

  The header is checked against the size of the file, by safetensors, before anything is allocated.
  Raises UserError for a file that cannot be read, is cut short, damaged or of another kind.
  """

  def __init__(self, path: str | os.PathLike, *, remedy: str = ""):
    """remedy: what the user can do about a damaged file, for messages."""
    self.path, self._remedy = Path(path), f"; {remedy}" if remedy else ""
    try:
      check_regular_file(Path(path))
      self._file = safetensors.safe_open(path, framework="numpy")
      self.metadata: dict[str, str] = self._file.metadata() or {}
      self._slices = {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
      raise self._damaged(error) from None

  def keys(self) -> list[str]:
    """The names of all tensors."""
    return list(self._slices)

  def shape(self, key: str) -> tuple[int, ...]:
    return tuple(self._slices[key].get_shape())

  def type_name(self, key: str) -> str:
    """The tensor's type in the words of safetensors, which may be one that `read` refuses."""
    return str(self._slices[key].get_dtype())

  def read(self, key: str, *index: slice) -> np.ndarray:
    """The slice of the tensor, or all of it. Raises UserError for a type that numpy lacks."""
    if (name := self.type_name(key)) not in TYPES:
      raise UserError(
        f"{self.path}: {key} holds numbers of the type {name}; expected one of {', '.join(TYPES)}"
      )
    try:
      return self._slices[key][index] if index else self._file.get_tensor(key)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
      raise self._damaged(error) from None

  def _damaged(self, error: Exception) -> UserError:
    reason = " ".join(str(error).split())  # it may quote the header
    return UserError(f"{self.path}: not a whole safetensors file ({reason}){self._remedy}")
