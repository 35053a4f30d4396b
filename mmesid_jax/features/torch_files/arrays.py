"""Arrays and tensors of a pickle before they are read: where their numbers are, and the layout."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(slots=True)
class PickledDtype:
  """A numpy type, mutable because its byte order follows later in the pickle."""

  numpy: np.dtype


@dataclasses.dataclass(frozen=True, slots=True)
class StoredNumbers:
  """Numbers that are stored outside the pickle, in a file of PyTorch, under a key."""

  dtype: np.dtype
  key: str
  size: int


@dataclasses.dataclass(slots=True)
class NestedNumbers:
  """Numbers as a complete file of PyTorch inside the pickle."""

  file: bytes
  opened: tuple[np.dtype, memoryview] | None = None  # type and content, once the file is read


@dataclasses.dataclass(frozen=True, slots=True)
class InlineNumbers:
  """Numbers as bytes in the pickle."""

  dtype: PickledDtype
  content: bytes | bytearray


@dataclasses.dataclass(slots=True)
class PickledTensor:
  """An array or tensor; shape, strides and offset count numbers, not bytes."""

  numbers: StoredNumbers | NestedNumbers | InlineNumbers | None = (
    None  # None: announced, its content follows
  )
  shape: tuple[int, ...] = ()
  strides: tuple[int, ...] = ()
  offset: int = 0

  def view(self, dtype: np.dtype, content) -> np.ndarray:
    """Returns an array over these bytes, without a copy.

    Raises ValueError if a number is outside of them, and if the array repeats numbers so that it
    holds more than there are.
    """
    available, size = len(content) // dtype.itemsize, math.prod(self.shape)
    steps = zip(self.shape, self.strides, strict=True)
    # Python's integers do not overflow
    last = self.offset + sum((length - 1) * stride for length, stride in steps)
    if size > available or (size and last >= available):
      raise ValueError(f"a shape of {list(self.shape)} from {available} numbers")
    if not size:
      return np.empty(self.shape, dtype)
    strides = tuple(stride * dtype.itemsize for stride in self.strides)
    return np.ndarray(self.shape, dtype, content, self.offset * dtype.itemsize, strides)
