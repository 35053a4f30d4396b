"""A Hugging Face directory's tensors, read slice by slice, and written in shards."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable

import numpy as np
import safetensors
import safetensors.numpy

from mmesid_jax.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHARD_BYTES = 4 << 30


class Checkpoint:
  """The safetensors of a directory: one file, or shards with an index.

  Opening reads headers only and checks that every file is whole. `bytes_read` counts what `read`
  has handed out. Raises UserError for a directory that holds no safetensors, a shard that is
  missing or cut short, or a tensor that the index puts into the wrong file.
  """

  def __init__(self, directory: str | os.PathLike):
    self.directory = pathlib.Path(directory)
    self.bytes_read = 0
    self._files = {name: self._open(name) for name in self._names()}
    found = {key: file for file in self._files.values() for key in file.keys()}  # noqa: SIM118
    self._check_index(found)
    self._slices = {key: file.get_slice(key) for key, file in found.items()}

  def keys(self) -> list[str]:
    return list(self._slices)

  def shape(self, key: str) -> tuple[int, ...]:
    return tuple(self._slices[key].get_shape())

  def is_float(self, key: str) -> bool:
    return self._slices[key].get_dtype() in ("F32", "F16", "BF16")

  def read(self, key: str, *index: slice) -> np.ndarray:
    """The slice of the tensor, or all of it, in the dtype of the file."""
    array = self._slices[key][index or ...]
    self.bytes_read += array.nbytes
    return array

  def _names(self) -> list[str]:
    if not self.directory.is_dir():
      raise UserError(f"{self.directory}: no such directory; name one that holds config.json")
    if (self.directory / INDEX).is_file():
      return sorted(set(self._index().values()))
    if (self.directory / SINGLE).is_file():
      return [SINGLE]
    if pickles := sorted(p.name for pattern in PICKLES for p in self.directory.glob(pattern)):
      raise UserError(
        f"{self.directory}: holds {pickles[0]} and no safetensors; pickles are not opened, because "
        "they can run code: convert it with transformers' save_pretrained, which writes safetensors"
      )
    raise UserError(f"{self.directory}: holds neither {SINGLE} nor {INDEX}")

  def _index(self) -> dict[str, str]:
    file = self.directory / INDEX
    try:
      weight_map = json.loads(file.read_text())["weight_map"]
      if not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError("a file name that is not text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f"{file}: expected an object with weight_map ({error!r})") from error
    if outside := [name for name in weight_map.values() if pathlib.Path(name).name != name]:
      raise UserError(f"{file}: {outside[0]!r} is not a file name in this directory")
    return weight_map

  def _open(self, name: str):
    file = self.directory / name
    if not file.is_file():
      raise UserError(f"{file}: no such file, but {INDEX} names it; download it again")
    try:
      return safetensors.safe_open(file, framework="numpy")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
      raise UserError(
        f"{file}: not a whole safetensors file ({error}); download it again"
      ) from error

  def _check_index(self, found: dict) -> None:
    if SINGLE in self._files:
      return
    for key, name in self._index().items():
      if found.get(key) is not self._files[name]:
        raise UserError(f"{self.directory / name}: does not hold {key}, but {INDEX} says so")


def refuse_existing(directory: pathlib.Path) -> None:
  """Nothing that is there is written over. Raises UserError."""
  if directory.exists():
    raise UserError(f"{directory}: exists already; name a new directory")


def write_checkpoint(
  directory: pathlib.Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  config: dict,
  *,
  copy_from: pathlib.Path | None = None,
) -> None:
  """Writes a new directory that transformers loads: config.json and shards of at most 4 GiB.

  Tensors are taken one by one, so memory holds a shard and never the model. From `copy_from` come
  the tokenizer's and other small files. The directory appears whole or not at all. Raises UserError
  when it exists.
  """
  refuse_existing(directory)
  temporary = directory.with_name(directory.name + ".tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  places: dict[str, int] = {}
  shard: dict[str, np.ndarray] = {}
  total, files = 0, 0

  def flush():
    nonlocal shard, files
    safetensors.numpy.save_file(shard, temporary / f"part-{files:05d}", metadata={"format": "pt"})
    places.update(dict.fromkeys(shard, files))
    shard, files = {}, files + 1

  for key, array in tensors:
    if shard and sum(x.nbytes for x in shard.values()) + array.nbytes > SHARD_BYTES:
      flush()
    shard[key] = np.ascontiguousarray(array)
    total += array.nbytes
  flush()
  names = [SINGLE if files == 1 else _shard_name(i, files) for i in range(files)]
  for i, name in enumerate(names):
    (temporary / f"part-{i:05d}").rename(temporary / name)
  if files > 1:
    index = {
      "metadata": {"total_size": total},
      "weight_map": {key: names[i] for key, i in places.items()},
    }
    (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n")
  (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  if copy_from is not None:
    for file in sorted(copy_from.glob("*")):
      if file.suffix in (".json", ".txt", ".jinja", ".model") and file.name not in (
        INDEX,
        "config.json",
      ):
        shutil.copy(file, temporary / file.name)
  os.replace(temporary, directory)


def _shard_name(index: int, count: int) -> str:
  return f"model-{index + 1:05d}-of-{count:05d}.safetensors"
