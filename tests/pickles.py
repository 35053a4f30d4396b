"""Pickles and files of PyTorch's, written by hand: neither torch nor a class of it is needed."""

import pickle
import pickletools
import struct
import zipfile

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {"f4": "FloatStorage", "f2": "HalfStorage", "bfloat16": "BFloat16Storage"}


def value(x: object) -> bytes:
  """Instructions that push a value."""
  return pickletools.optimize(pickle.dumps(x, 2))[2:-1]


def name(text: str) -> bytes:
  module, _, attribute = text.rpartition(".")
  return f"c{module}\n{attribute}\n".encode()


def call(function: str, *arguments: bytes) -> bytes:
  return name(function) + b"(" + b"".join(arguments) + b"tR"


def storage(key: str, size: int, kind: str = "FloatStorage", *more: bytes) -> bytes:
  parts = [value("storage"), name(f"torch.{kind}"), value(key), value("cpu"), value(size), *more]
  return b"(" + b"".join(parts) + b"tQ"


def tensor(numbers: bytes, shape, strides, offset=0) -> bytes:
  hooks = call("collections.OrderedDict")
  parts = [numbers, value(offset), value(shape), value(strides), value(False), hooks]
  return call("torch._utils._rebuild_tensor_v2", *parts)


def whole(instructions: bytes) -> bytes:
  return b"\x80\x02" + instructions + b"."


def zipped(
  path, instructions: bytes, storages: dict[str, bytes], *, order="little", **more
) -> None:
  with zipfile.ZipFile(path, "w", **more) as file:
    file.writestr("archive/data.pkl", whole(instructions))
    file.writestr("archive/byteorder", order)
    for key, content in storages.items():
      file.writestr(f"archive/data/{key}", content)


def older(instructions: bytes, storages: dict[str, np.ndarray]) -> bytes:
  """torch.save's format before 1.6."""
  machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
  parts = [value(MAGIC), value(1001), value(machine), instructions, value(list(storages))]
  numbers = [struct.pack("<q", x.size) + x.tobytes() for x in storages.values()]
  return b"".join([*map(whole, parts), *numbers])


def dict_of(named: dict[str, bytes]) -> bytes:
  return b"}(" + b"".join(value(key) + item for key, item in named.items()) + b"u"
