"""Arrays and tensors before their numbers are looked at: where these stand, and how they are laid
out."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(slots=True)
class PickledDtype:
  """A type of numpy's; its byte order follows after it."""

  numpy: np.dtype


@dataclasses.dataclass(frozen=True, slots=True)
class StoredNumbers:
  """Numbers that stand elsewhere in a file of PyTorch's, under a key."""

  dtype: np.dtype
  key: str
  size: int


@dataclasses.dataclass(slots=True)
class NestedNumbers:
  """Numbers as a whole file of PyTorch's within the pickle."""

  file: bytes
  opened: tuple[np.dtype, memoryview] | None = None  # type and content, once the file was read


@dataclasses.dataclass(frozen=True, slots=True)
class InlineNumbers:
  """Numbers in the pickle itself."""

  dtype: PickledDtype
  content: bytes | bytearray


@dataclasses.dataclass(slots=True)
class PickledTensor:
  """An array or tensor: where its numbers stand; shape, strides and offset count numbers."""

  numbers: StoredNumbers | NestedNumbers | InlineNumbers | None = (
    None  # None: announced, its content follows
  )
  shape: tuple[int, ...] = ()
  strides: tuple[int, ...] = ()
  offset: int = 0

  def view(self, dtype: np.dtype, content) -> np.ndarray:
    """The array over these bytes, not copied. Raises ValueError where one of its numbers stands
    outside them, and where it repeats numbers so that it holds more than there are."""
    count, asked = len(content) // dtype.itemsize, math.prod(self.shape)
    steps = zip(self.shape, self.strides, strict=True)
    last = self.offset + sum((length - 1) * stride for length, stride in steps)  # of any size: int
    if asked > count or (asked and last >= count):
      raise ValueError(f"a shape of {list(self.shape)} from {count} numbers")
    if not asked:
      return np.empty(self.shape, dtype)
    strides = tuple(stride * dtype.itemsize for stride in self.strides)
    return np.ndarray(self.shape, dtype, content, self.offset * dtype.itemsize, strides)
