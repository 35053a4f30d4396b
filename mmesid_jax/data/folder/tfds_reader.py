"""A TensorFlow dataset of `prepare`, read without TensorFlow, back into plain files."""

import contextlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from mmesid_jax.data.folder.file_names import ITEMS as ITEMS_FILE
from mmesid_jax.data.folder.file_names import SEQUENCES, TIMES
from mmesid_jax.data.folder.file_names import USERS as USERS_FILE
from mmesid_jax.data.folder.keys import KEY
from mmesid_jax.data.folder.tfds_examples import (
  ITEMS,
  LISTS,
  NAME,
  TEXTS,
  USERS,
  example_to_item_line,
  example_to_user_lines,
)
from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder
from mmesid_jax.files.digest import file_sha256
from mmesid_jax.files.provenance import is_made_from
from mmesid_jax.files.readers import read_bytes

INFO = "dataset_info.json"
DEPTH = 4  # folders between the one that is named and those that hold INFO
VERSION = "1."  # what is read: TFDS's major version, which a change of the features raises
MARK = "made_from.json"  # in the plain folder: what its files were made from


def export_plain_files(directory: Path, folder: Path) -> None:
  """Writes sequences.txt, users.jsonl, items.jsonl and, where there are times, times.npy into
  `folder`, byte for byte those that the dataset within `directory` was made from.

  Nothing is written where the folder holds what these very bytes gave. It appears complete or not
  at all. Raises UserError for a directory that does not hold one such dataset, one that is damaged
  or incomplete, and where the disk refuses the files.
  """
  found = {name: find_config_folder(directory, name) for name in (USERS, ITEMS)}
  made_from = {name: _digests(place) for name, place in found.items()}
  if is_made_from(folder / MARK, made_from):
    return
  owned = (SEQUENCES, USERS_FILE, ITEMS_FILE, TIMES, MARK)
  with atomic_folder(folder, replaces=owned) as temporary:
    _write_users(found[USERS], temporary)
    _write_items(found[ITEMS], temporary)
    (temporary / MARK).write_text(json.dumps(made_from, indent=1))


def find_config_folder(directory: Path, name: str) -> Path:
  """The folder of the configuration, in `directory` or below. Raises UserError unless there is
  exactly one, of a version that is read."""
  found = {}
  for depth in range(DEPTH + 1):
    for path in directory.glob("*/" * depth + INFO):
      info = _info(path)
      if (info.get("name"), info.get("configName")) == (NAME, name):
        found[path.parent] = info.get("version", "")
  if len(found) != 1:
    number = ", ".join(map(str, sorted(found))) or f"no {INFO} of one"
    raise UserError(
      f"--config.data.dir={directory}: expected one dataset {NAME}/{name}, as prepare writes with "
      f"--config.tfds=True, there or below; found {number}"
    )
  ((place, version),) = found.items()
  if not version.startswith(VERSION):
    raise UserError(f"{place}: version {version}; this one reads {VERSION}x")
  return place


def _info(path: Path) -> dict[str, Any]:
  try:
    info = json.loads(read_bytes(path))
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error})") from None
  return info if isinstance(info, dict) else {}


def _digests(place: Path) -> dict[str, str]:
  files = sorted(filter(Path.is_file, place.iterdir()))
  return {path.name: file_sha256(path) for path in files}


def _write_users(place: Path, folder: Path) -> None:
  times, timed = array("q"), False
  with (folder / SEQUENCES).open("wb") as sequences:
    with (folder / USERS_FILE).open("wb") as users:
      for features in _examples(place, USERS):
        with _whole(place):
          user = {
            "user_id": features["user_id"].int64_list.value[0],
            KEY: features[KEY].bytes_list.value[0],
            "items": features["items"].int64_list.value,
          }
          sequence, line = example_to_user_lines(user)
        sequences.write(sequence)
        users.write(line)
        if "times" in features:
          timed = True
          times.extend(features["times"].int64_list.value)
  if timed:
    with (folder / TIMES).open("wb") as file:
      np.save(file, np.frombuffer(times, np.int64))


def _write_items(place: Path, folder: Path) -> None:
  with (folder / ITEMS_FILE).open("wb") as items:
    for features in _examples(place, ITEMS):
      with _whole(place):
        texts = {name: features[name].bytes_list.value[0] for name in (KEY, *TEXTS)}
        lists = {name: features[name].bytes_list.value for name in LISTS}
        line = example_to_item_line(
          {"item_id": features["item_id"].int64_list.value[0], **texts, **lists}
        )
      items.write(line)


def _examples(place: Path, split: str) -> Iterator[Any]:
  """Features by name of every example of a split, in order. Raises UserError as `_whole` does.

  The records come as they are, not as TFDS decodes them: that takes three times as long, and gives
  lists of numpy's scalars.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.proto import tf_example_pb2

  with _whole(place):
    records = tfds.builder_from_directory(place).as_data_source(
      split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    numbers = range(len(records))
  for number in tqdm.tqdm(numbers, desc=split, unit=" examples", delay=2, leave=False):
    with _whole(place):
      features = tf_example_pb2.Example.FromString(records[number]).features.feature
    yield features


@contextlib.contextmanager
def _whole(place: Path) -> Iterator[None]:
  """Raises UserError for whatever TFDS and what it reads with raise in the block: files that are
  missing, cut off or damaged, and examples of other features."""
  try:
    yield
  except Exception as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{place}: damaged or incomplete ({reason}); copy it again") from None
