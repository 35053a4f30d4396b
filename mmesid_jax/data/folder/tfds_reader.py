"""Reads a TensorFlow dataset of `prepare` back into plain files, without TensorFlow or TFDS."""

import contextlib
import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES, USERS
from mmesid_jax.data.folder.keys import KEY
from mmesid_jax.data.folder.tfds_examples import (
  ITEMS_CONFIG,
  LISTS,
  NAME,
  TEXTS,
  USERS_CONFIG,
  example_to_item_line,
  example_to_user_lines,
)
from mmesid_jax.data.folder.writer import write_times
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder
from mmesid_jax.files.digest import file_sha256
from mmesid_jax.files.provenance import check_own_folder, is_made_from
from mmesid_jax.files.readers import parse_json, read_bytes

INFO = "dataset_info.json"
DEPTH = 4  # maximum number of folders between the named one and that of INFO
VERSION = "1."  # TFDS's major version, which changes with the features
READ_AT_ONCE = 1024  # examples
READER_OPTIONS = "readahead_buffer_size:1M,max_parallelism:1"
MARK = "made_from.json"  # in the plain folder: digests of the files that it was made from


def export_plain_files(directory: Path, folder: Path) -> None:
  """Writes the plain files into `folder`, byte for byte those that the TFDS dataset was made from.

  These are sequences.txt, users.jsonl, items.jsonl and, if there are times, times.npy. The folder
  appears complete or not at all; it is left as it is if it was made from the same bytes.

  Raises UserError unless `directory` holds exactly one such dataset, when that is damaged or
  incomplete, and when the disk refuses the files.
  """
  sources = {name: find_config_folder(directory, name) for name in (USERS_CONFIG, ITEMS_CONFIG)}
  made_from = {name: _file_digests(source) for name, source in sources.items()}
  if is_made_from(folder / MARK, made_from):
    return
  check_own_folder(folder, folder / MARK)
  owned = (SEQUENCES, USERS, ITEMS, TIMES, MARK)
  with atomic_folder(folder, replaces=owned) as temporary:
    _write_users(sources[USERS_CONFIG], temporary)
    _write_items(sources[ITEMS_CONFIG], temporary)
    (temporary / MARK).write_text(json.dumps(made_from, indent=1))


def find_config_folder(directory: Path, name: str) -> Path:
  """Finds the folder of the TFDS configuration `name` in `directory` or below.

  Raises UserError unless there is exactly one, with a version that this module reads.
  """
  versions = {}
  for depth in range(DEPTH + 1):
    for path in directory.glob("*/" * depth + INFO):
      info = _read_info(path)
      if (info.get("name"), info.get("configName")) == (NAME, name):
        versions[path.parent] = str(info.get("version"))
  if len(versions) != 1:
    found = ", ".join(map(str, sorted(versions))) or f"no {INFO} of one"
    raise UserError(
      f"--config.data.dir={directory}: expected one dataset {NAME}/{name}, as prepare writes with "
      f"--config.tfds=True, there or below; found {found}"
    )
  ((folder, version),) = versions.items()
  if not version.startswith(VERSION):
    raise UserError(f"{folder}: version {version}; expected {VERSION}x")
  return folder


def _read_info(path: Path) -> dict[str, Any]:
  try:
    info = parse_json(read_bytes(path))
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error})") from None
  return info if isinstance(info, dict) else {}


def _file_digests(folder: Path) -> dict[str, str]:
  files = sorted(filter(Path.is_file, folder.iterdir()))
  return {path.name: file_sha256(path) for path in files}


def _write_users(source: Path, folder: Path) -> None:
  times, has_times = array("q"), False
  with (folder / SEQUENCES).open("wb") as sequences:
    with (folder / USERS).open("wb") as users:
      for features in _read_examples(source, USERS_CONFIG):
        with _catch_damage(source):
          user = {
            "user_id": features["user_id"].int64_list.value[0],
            KEY: features[KEY].bytes_list.value[0],
            "items": features["items"].int64_list.value,
          }
          sequence, line = example_to_user_lines(user)
        sequences.write(sequence)
        users.write(line)
        if "times" in features:
          has_times = True
          times.extend(features["times"].int64_list.value)
  if has_times:
    write_times(folder, np.frombuffer(times, np.int64))


def _write_items(source: Path, folder: Path) -> None:
  with (folder / ITEMS).open("wb") as items:
    for features in _read_examples(source, ITEMS_CONFIG):
      with _catch_damage(source):
        texts = {name: features[name].bytes_list.value[0] for name in (KEY, *TEXTS)}
        lists = {name: features[name].bytes_list.value for name in LISTS}
        line = example_to_item_line(
          {"item_id": features["item_id"].int64_list.value[0], **texts, **lists}
        )
      items.write(line)


def _read_examples(source: Path, split: str) -> Iterator[Any]:
  """Yields the features by name of every example of a split, in order.

  The shards are read without TFDS: it imports and runs what features.json names, also Python files
  inside the folder. Raises UserError as `_catch_damage` does.
  """
  from array_record.python.array_record_module import ArrayRecordReader
  from tensorflow_datasets.proto import tf_example_pb2

  with _catch_damage(source):
    lengths = _shard_lengths(_read_info(source / INFO), split)
  with reporter.progress(label=split, total=sum(lengths), unit=" examples") as bar:
    for shard, length in enumerate(lengths):
      with _catch_damage(source):
        path = source / f"{NAME}-{split}.array_record-{shard:05}-of-{len(lengths):05}"
        reader = ArrayRecordReader(str(path), READER_OPTIONS)
        if reader.num_records() != length:
          raise ValueError(f"{path.name} holds {reader.num_records()} examples, not {length}")
      for start in range(0, length, READ_AT_ONCE):
        with _catch_damage(source):
          records = reader.read(start, min(start + READ_AT_ONCE, length))
          examples = [tf_example_pb2.Example.FromString(record) for record in records]
        for example in examples:
          yield example.features.feature
        bar.update(len(examples))
      reader.close()


def _shard_lengths(info: Mapping[str, Any], split: str) -> list[int]:
  """The number of examples of every shard. Raises ValueError for another form of the file."""
  try:
    (lengths,) = (s["shardLengths"] for s in info["splits"] if s["name"] == split)
    lengths = [int(length) for length in lengths]
  except (LookupError, TypeError, ValueError):
    raise ValueError(f"{INFO}: expected the split {split} with its shardLengths") from None
  if not lengths or min(lengths) < 1:
    raise ValueError(f"{INFO}: shardLengths of {split} are not numbers above 0")
  return lengths


@contextlib.contextmanager
def _catch_damage(source: Path) -> Iterator[None]:
  """Turns any exception in the block into UserError.

  The libraries raise many kinds for files that are missing, cut off or damaged, and for examples
  with other features.
  """
  try:
    yield
  except Exception as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{source}: damaged or incomplete ({reason}); copy it again") from None
