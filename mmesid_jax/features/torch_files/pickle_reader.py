"""Reads arrays and tensors from a pickle without unpickling it.

A pickle is a program, and Python's own reader runs it: a pickle from a stranger can do anything.
Here pickletools only lists its instructions, and the few that build numbers, text, lists, dicts,
numpy arrays and PyTorch tensors are followed. A global is never imported: its name is only a label,
only those in `GLOBALS` are accepted, and `_call` holds everything that is done for them. Everything
else is refused.

Memory and time are bounded by the size of the file: there are at most MAX_INSTRUCTIONS, each adds
at most the bytes that it takes from the file and an empty container, copies use up a budget of the
file's size, and an array is a view that may not hold more numbers than there are.
"""

import contextlib
import dataclasses
import pickletools
from collections.abc import Iterator
from typing import BinaryIO

import ml_dtypes
import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.features.torch_files.arrays import (
  InlineNumbers,
  NestedNumbers,
  PickledDtype,
  PickledTensor,
  StoredNumbers,
)

MAX_INSTRUCTIONS = 50_000_000  # about 70 bytes each at worst
MIN_PROGRESS_BYTES = 2**20  # a file may hold a million small pickles: no bar for each
MAX_KEY, MAX_NUMBER = 1000, 2**48  # characters of a dict's key; a size, stride or offset
NUMPY_TYPES = {"b1", *(f"{kind}{n}" for kind in "iu" for n in (1, 2, 4, 8)), "f2", "f4", "f8"}
STORAGES = {
  "torch.BoolStorage": np.dtype("?"),
  "torch.ByteStorage": np.dtype("u1"),
  "torch.CharStorage": np.dtype("i1"),
  "torch.ShortStorage": np.dtype("<i2"),
  "torch.IntStorage": np.dtype("<i4"),
  "torch.LongStorage": np.dtype("<i8"),
  "torch.HalfStorage": np.dtype("<f2"),
  "torch.FloatStorage": np.dtype("<f4"),
  "torch.DoubleStorage": np.dtype("<f8"),
  "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}
GLOBALS = {  # the names of numpy 2; numpy.core of numpy 1 is read as numpy._core
  "_codecs.encode",
  "collections.OrderedDict",
  "numpy.dtype",
  "numpy.ndarray",
  "numpy._core.multiarray._reconstruct",
  "numpy._core.multiarray.scalar",
  "numpy._core.numeric._frombuffer",
  "torch._utils._rebuild_tensor_v2",
  "torch._utils._rebuild_parameter",
  "torch.storage._load_from_bytes",
  *STORAGES,
}
LITERALS = {  # instructions that push their argument
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
  *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
  *("STRING", "BINSTRING", "SHORT_BINSTRING"),  # Python 2; pickletools decodes them to text
  *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalName:
  """A global; only its name is used."""

  text: str


def read_pickle(
  stream: BinaryIO, size: int, source: object
) -> tuple[object, dict[str, StoredNumbers]]:
  """Reads the pickle that begins at the stream's position, up to its end.

  Args:
    stream: a binary file.
    size: bytes of the stream.
    source: the file's name for messages.

  Returns:
    The value, made of None, bool, int, float, str, bytes, lists, tuples, dicts with text or int as
    keys, and PickledTensor; and the storages outside the pickle that it refers to, by key.

  Raises UserError, which names `source` and the byte, for everything else.
  """
  machine, position = _PickleMachine(size), stream.tell()
  try:
    for name, argument, at in _iter_instructions(stream, size):
      position = at
      machine.follow(name, argument)
  except IndexError:
    reason = "takes a value that does not exist"
  except KeyError as error:
    reason = f"no value was kept under {error.args[0]}"
  except (ValueError, TypeError, OverflowError) as error:
    reason = _shorten(str(error))
  else:
    return machine.stack[0], machine.stored
  raise UserError(f"{source}: not read, at byte {position}: {reason}")


def _iter_instructions(stream: BinaryIO, size: int) -> Iterator[tuple[str, object, int]]:
  """Yields name, argument and byte of every instruction."""
  bar, last = contextlib.nullcontext(), stream.tell()
  if size >= MIN_PROGRESS_BYTES:
    bar = reporter.progress(label="read", total=size, unit="B", unit_scale=True)
  with bar as progress:
    for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
      if count == MAX_INSTRUCTIONS:
        raise ValueError(f"more than {count} instructions; save arrays, not lists of numbers")
      if progress is not None and not count % 2**16:
        progress.update(position - last)
        last = position
      yield opcode.name, argument, position


class _PickleMachine:
  """The state of a pickle program: a stack, the marked heights in it, and a memo."""

  def __init__(self, budget: int):
    self.stack: list = []
    self.marks: list[int] = []
    self.memo: dict[int, object] = {}
    self.stored: dict[str, StoredNumbers] = {}
    self.enclosed: dict[int, NestedNumbers] = {}
    self.budget = budget  # bytes that may still be copied

  def follow(self, name: str, argument) -> None:
    """Executes one instruction."""
    stack = self.stack
    match name:
      case _ if name in LITERALS:
        stack.append(argument)
      case "MEMOIZE":
        self.memo[len(self.memo)] = stack[-1]
      case "PUT" | "BINPUT" | "LONG_BINPUT" if 0 <= argument < 2**32:
        self.memo[argument] = stack[-1]
      case "GET" | "BINGET" | "LONG_BINGET":
        stack.append(self.memo[argument])
      case "NONE" | "NEWTRUE" | "NEWFALSE":
        stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
      case "MARK":
        self.marks.append(len(stack))
      case "EMPTY_TUPLE":
        stack.append(())
      case "TUPLE":
        stack.append(tuple(self._pop_to_mark()))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        stack.append(tuple(self._pop(int(name[-1]))))
      case "EMPTY_LIST":
        stack.append([])
      case "LIST":
        stack.append(self._pop_to_mark())
      case "APPEND" | "APPENDS":
        values = self._pop(1) if name == "APPEND" else self._pop_to_mark()
        _require_type(list, stack[-1]).extend(values)
      case "EMPTY_DICT":
        stack.append({})
      case "DICT":
        pairs = self._pop_to_mark()
        stack.append(_fill_dict({}, pairs))
      case "SETITEM" | "SETITEMS":
        pairs = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
        _fill_dict(_require_type(dict, stack[-1]), pairs)
      case "GLOBAL":
        stack.append(_allowed_global(argument.replace(" ", ".", 1)))
      case "STACK_GLOBAL":
        stack.append(_allowed_global(".".join(_require_type(str, part) for part in self._pop(2))))
      case "REDUCE":
        function, arguments = self._pop(2)
        stack.append(
          self._call(_require_type(GlobalName, function).text, _require_type(tuple, arguments))
        )
      case "BUILD":
        (state,) = self._pop(1)
        self._build(stack[-1], state)
      case "BINPERSID":
        stack.append(self._stored(stack.pop()))
      case "PROTO" | "FRAME" | "STOP":
        if name == "STOP" and (self.marks or len(stack) != 1):
          raise ValueError("does not end with exactly one value")
      case _:
        raise ValueError(f"the instruction {name}, which no array needs")

  def _pop(self, count: int) -> list:
    if len(self.stack) < count:
      raise IndexError
    values = self.stack[-count:]
    del self.stack[-count:]
    return values

  def _pop_to_mark(self) -> list:
    height = self.marks.pop()
    values = self.stack[height:]
    del self.stack[height:]
    return values

  def _call(self, name: str, arguments: tuple) -> object:
    """Returns what replaces the result of calling a global; nothing else is ever done for one."""
    match name, arguments:
      case "_codecs.encode", (str(text), "latin1" | "latin-1"):
        return self._bytes(text)
      case "collections.OrderedDict", ():
        return {}
      case "numpy.dtype", (str(code), *_) if code in NUMPY_TYPES:
        return PickledDtype(np.dtype(code))
      case "numpy.dtype", (str(code), *_):
        raise ValueError(f"an array of the type {_shorten(code)!r}; only numbers are read")
      case "numpy._core.multiarray._reconstruct", (GlobalName("numpy.ndarray"), *_):
        return PickledTensor()
      case "numpy._core.multiarray.scalar", (PickledDtype() as dtype, content):
        return _inline_array(dtype, (), "C", self._bytes(content))
      case "numpy._core.numeric._frombuffer", (
        content,
        PickledDtype() as dtype,
        shape,
        "C" | "F" as order,
      ):
        return _inline_array(dtype, shape, order, self._bytes(content))
      case "torch.storage._load_from_bytes", (bytes(file),):
        return self.enclosed.setdefault(id(file), NestedNumbers(file))  # to read it once
      case (
        "torch._utils._rebuild_tensor_v2",
        (StoredNumbers() | NestedNumbers() as numbers, offset, shape, strides, *_),
      ):
        return PickledTensor(
          numbers,
          _require_sizes(shape),
          _require_sizes(strides, len(shape)),
          *_require_sizes((offset,)),
        )
      case "torch._utils._rebuild_parameter", (PickledTensor() as tensor, *_):
        return tensor
    raise ValueError(f"{name} with arguments that no array has")

  def _build(self, target: object, state: object) -> None:
    """Sets the state of an object that was created earlier."""
    match target, state:
      case PickledTensor(numbers=None), (int(), shape, PickledDtype() as dtype, fortran, content):
        array = _inline_array(dtype, shape, "F" if fortran else "C", self._bytes(content))
        target.numbers, target.shape, target.strides = array.numbers, array.shape, array.strides
      case PickledDtype(), (int(), "<" | ">" | "|" | "=" as order, *_):
        target.numpy = target.numpy.newbyteorder(order)
      case dict(), dict():  # attributes of an OrderedDict: the versions in a state dict
        pass
      case _:
        raise ValueError(f"sets the state of a {type(target).__name__}")

  def _stored(self, reference: object) -> StoredNumbers:
    match reference:
      case ("storage", GlobalName(kind), str(key), str(), size) | (
        "storage",
        GlobalName(kind),
        str(key),
        str(),
        size,
        None,
      ) if kind in STORAGES:
        (size,) = _require_sizes((size,))
        stored = StoredNumbers(STORAGES[kind], key, size)
        self.stored.setdefault(key, stored)
        return stored
    raise ValueError("a reference that is not a storage of PyTorch")

  def _bytes(self, content: object) -> bytes | bytearray:
    """Returns bytes, also those that Python 2 or protocols 0 to 2 wrote as text."""
    if isinstance(content, str):
      self.budget -= len(content)
      if self.budget < 0:
        raise ValueError("copies more than the file holds")
      return content.encode("latin-1")
    if isinstance(content, bytes | bytearray):
      return content
    raise ValueError(f"a {type(content).__name__} where the bytes of an array are expected")


def _allowed_global(name: str) -> GlobalName:
  name = name.replace("numpy.core.", "numpy._core.", 1)
  if name not in GLOBALS:
    raise ValueError(f"{_shorten(name)}, which could run code; only arrays and tensors are read")
  return GlobalName(name)


def _inline_array(
  dtype: PickledDtype, shape: object, order: object, content: bytes | bytearray
) -> PickledTensor:
  shape = _require_sizes(shape)
  if order not in ("C", "F"):
    raise ValueError("an array with another order of axes; save a contiguous one")
  ordered = range(len(shape)) if order == "F" else reversed(range(len(shape)))
  strides, step = [0] * len(shape), 1
  for axis in ordered:
    strides[axis], step = step, step * shape[axis]
  if step * dtype.numpy.itemsize != len(content):
    raise ValueError(f"an array of shape {list(shape)} in {len(content)} bytes")
  return PickledTensor(InlineNumbers(dtype, content), shape, tuple(strides))


def _require_sizes(values: object, count: int | None = None) -> tuple[int, ...]:
  valid = isinstance(values, tuple) and len(values) <= 32 and count in (None, len(values))
  if not valid or not all(type(n) is int and 0 <= n < MAX_NUMBER for n in values):
    raise ValueError("a size, stride or offset that no array has")
  return values


def _fill_dict(target: dict, pairs: list) -> dict:
  for key, value in zip(pairs[::2], pairs[1::2], strict=True):
    short_text = isinstance(key, str) and len(key) <= MAX_KEY
    if not short_text and not (type(key) is int and abs(key) < 2**60):
      # others would be hashed again at every use, or in many steps
      kind = type(key).__name__
      raise ValueError(f"a dict with a key of type {kind}; only short text and integers are read")
    target[key] = value
  return target


def _require_type(kind: type, value):
  if not isinstance(value, kind):
    raise ValueError(f"a {type(value).__name__} where a {kind.__name__} is expected")
  return value


def _shorten(text: str) -> str:
  return text if len(text) <= 200 else text[:197] + "..."
