"""Reads a Hugging Face directory's tensors slice by slice, and writes them in shards."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import NoReturn

import numpy as np
import safetensors.numpy

from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder, check_new_directory
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.files.tensor_file import TensorFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = ("F32", "F16", "BF16")  # dtypes of weights that are read
SHARD_BYTES = 4 << 30
# COPIED is what goes along with a model's weights. Nothing else does: an adapter_config.json, for
# example, makes transformers look for the adapter.
TOKENIZER = (
  *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
  *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
  *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
COPIED = ("generation_config.json", *TOKENIZER, "LICENSE*", "NOTICE*", "USE_POLICY*")


class Checkpoint:
  """The safetensors of a directory: one file, or shards with an index.

  Opening reads headers only and checks that every file is whole. `bytes_read` is the number of
  bytes that `read` has returned. Raises UserError for a directory without safetensors, a shard that
  is missing or cut short, a tensor that the index puts into the wrong file, and a file beside an
  index of shards, as only one of the two is meant.
  """

  def __init__(self, directory: str | os.PathLike):
    self.directory = pathlib.Path(directory)
    self.bytes_read = 0
    index = self._index()
    self._files = {name: self._open(name) for name in sorted(set(index.values())) or [SINGLE]}
    keys = {name: set(file.keys()) for name, file in self._files.items()}
    if absent := [key for key, name in index.items() if key not in keys[name]]:
      file = self.directory / index[absent[0]]
      raise UserError(f"{file}: does not hold {absent[0]}, but {INDEX} says so; download it again")
    file_of = {key: name for name in keys for key in keys[name]} | index
    self._file_of = {key: self._files[name] for key, name in file_of.items()}

  def files(self) -> list[pathlib.Path]:
    """The files that the model and its tokenizer are read from."""
    others = [self.directory / "config.json"]
    for pattern in TOKENIZER:
      others += filter(pathlib.Path.is_file, self.directory.glob(pattern))
    return [*others, *(self.directory / name for name in self._files)]

  def keys(self) -> list[str]:
    """The names of all tensors."""
    return list(self._file_of)

  def shape(self, key: str) -> tuple[int, ...]:
    return self._file_of[key].shape(key)

  def require_floats(self, key: str) -> None:
    """Raises UserError unless the tensor holds 16- or 32-bit floats."""
    if (dtype := self._file_of[key].type_name(key)) not in FLOATS:
      raise UserError(
        f"{self.directory}: {key} holds {dtype}, expected one of {', '.join(FLOATS)}; take the "
        "checkpoint before it was quantized"
      )

  def read(self, key: str, *index: slice) -> np.ndarray:
    """The slice of the tensor, or all of it, in the file's dtype. Raises UserError for numbers that
    are not finite."""
    file = self._file_of[key]
    array = file.read(key, *index)
    self.bytes_read += array.nbytes
    if not np.isfinite(array).all():
      raise UserError(
        f"{file.path}: {key} holds values that are not finite; the file is damaged, download it "
        "again"
      )
    return array

  def _index(self) -> dict[str, str]:
    """Tensor -> file of the directory, as the index says; {} for one file without an index."""
    if not self.directory.is_dir():
      raise UserError(f"{self.directory}: no such directory; name one that holds config.json")
    file, single = self.directory / INDEX, self.directory / SINGLE
    if not file.is_file():
      if not single.is_file():
        self._refuse_without_safetensors()
      return {}
    if single.is_file():
      raise UserError(f"{single}: stands beside {INDEX}; remove the one that is left over")
    weight_map = read_json_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
      raise UserError(f"{file}: expected an object with weight_map, a file for every tensor")
    for name in weight_map.values():
      if not isinstance(name, str) or pathlib.Path(name).name != name:
        raise UserError(f"{file}: {name!r} is not a file name in this directory")
    return weight_map

  def _refuse_without_safetensors(self) -> NoReturn:
    if pickles := sorted(p.name for pattern in PICKLES for p in self.directory.glob(pattern)):
      raise UserError(
        f"{self.directory}: holds {pickles[0]} and no safetensors; pickles are not opened, because "
        "they can run code: convert it with transformers' save_pretrained, which writes safetensors"
      )
    raise UserError(f"{self.directory}: holds neither {SINGLE} nor {INDEX}")

  def _open(self, name: str) -> TensorFile:
    file = self.directory / name
    if not os.path.isfile(file):  # not is_file(), which raises where a name is too long
      raise UserError(f"{file}: no such file, but {INDEX} names it; download it again")
    return TensorFile(file, remedy="download it again")


def write_checkpoint(
  directory: pathlib.Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  config: dict,
  *,
  copy_from: pathlib.Path | None = None,
) -> None:
  """Writes a new directory that transformers loads: config.json and shards of at most 4 GiB.

  Args:
    directory: must not exist; it appears whole or not at all.
    tensors: key and tensor, taken one by one, so that memory holds one shard and never the model.
    config: the content of config.json.
    copy_from: a directory whose tokenizer, generation settings and license are copied.

  Raises UserError where the directory exists, for a file to be copied that is a link out of
  copy_from, and for what the disk refuses.
  """
  check_new_directory(directory)
  with atomic_folder(directory) as temporary:
    _write_shards(temporary, tensors)
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for pattern in COPIED if copy_from is not None else ():
      for file in filter(pathlib.Path.is_file, copy_from.glob(pattern)):
        check_link(file, copy_from)
        target = temporary / file.relative_to(copy_from)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)  # not its mode: a read-only base makes no read-only export


def check_link(file: pathlib.Path, directory: pathlib.Path) -> None:
  """Refuses a link out of the directory: a stranger's could publish a file of the user.

  In the cache of Hugging Face, files of a snapshot are links to blobs beside the snapshots.
  """
  target, own = (pathlib.Path(os.path.realpath(path)) for path in (file, directory))
  if not target.is_relative_to(own) and target.parent != own.parent.parent / "blobs":
    raise UserError(f"{file}: is a link to {target}, out of its directory; put a copy in its place")


def _write_shards(directory: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
  """Writes one file of tensors, or shards with their index."""
  shard_of: dict[str, int] = {}
  shard: dict[str, np.ndarray] = {}
  total, count = 0, 0

  def write_shard():
    nonlocal shard, count
    safetensors.numpy.save_file(shard, directory / f"part-{count:05d}", metadata={"format": "pt"})
    shard_of.update(dict.fromkeys(shard, count))
    shard, count = {}, count + 1

  for key, array in tensors:
    if shard and sum(x.nbytes for x in shard.values()) + array.nbytes > SHARD_BYTES:
      write_shard()
    shard[key] = np.ascontiguousarray(array)
    total += array.nbytes
  write_shard()
  names = [SINGLE if count == 1 else _shard_name(i, count) for i in range(count)]
  for i, name in enumerate(names):
    (directory / f"part-{i:05d}").rename(directory / name)
  if count > 1:
    index = {
      "metadata": {"total_size": total},
      "weight_map": {key: names[i] for key, i in shard_of.items()},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shard_name(index: int, count: int) -> str:
  return f"model-{index + 1:05d}-of-{count:05d}.safetensors"
