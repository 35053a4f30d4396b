"""A disk that takes no more is one line that names the file, and nothing half written stays.

The system refuses a file's bytes after the first ROOM, as a full disk or a quota does.
"""

import contextlib
import pathlib
import pickle
import re
import resource

import numpy as np
import pytest

from mmesid_jax.data.dataset import prepare_dataset
from mmesid_jax.data.features import read_features
from mmesid_jax.data.folder.writer import write_times
from mmesid_jax.data.held_out_items import hold_out_items, write_warm_dataset
from mmesid_jax.data.synthetic import write_synthetic
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.ranking import PROTOCOLS
from mmesid_jax.features.torch_files.torch_table import convert_torch_file
from mmesid_jax.files import artifact, feature_table, rows
from mmesid_jax.files.feature_table import write_array
from mmesid_jax.files.lock import lock_folder
from mmesid_jax.files.resumable import PartFiles, open_partial_table
from mmesid_jax.hf.safetensors_dir import write_checkpoint
from mmesid_jax.ingest.prepared_folder import from_dataframe
from mmesid_jax.reports.test_ranks import write_ranks

ROOM = 40  # bytes
ROOM_OF_ARRAYS = (140, 1900)  # for the header of an .npy file and some numbers
X = np.ones((60, 8), np.float32)
SCHEMA = {"a": int, "b": str}
COLUMNS = {"a": list(range(99)), "b": ["text"] * 99}


@contextlib.contextmanager
def filling_disk():
  """Yields a function: the disk is full from its call to the end of the block, by default after
  ROOM bytes of each file."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    yield lambda room=ROOM: resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def dataset(folder: pathlib.Path) -> pathlib.Path:
  write_synthetic(folder / "data", users=30, items=20, clusters=4, seed=0)
  return folder / "data"


def warm(folder: pathlib.Path, full) -> None:
  found = prepare_dataset(dataset(folder), folder / "cache")
  split = hold_out_items(found.num_items, 0.2, 0)
  features = {"text": read_features(folder / "data" / "text.npy", found.num_items)}
  full()
  write_warm_dataset(found, split, features, folder / "warm")


def cache(folder: pathlib.Path, full) -> None:
  data = dataset(folder)
  full()
  prepare_dataset(data, folder / "out")


def convert(folder: pathlib.Path, full) -> None:
  (folder / "x.pkl").write_bytes(pickle.dumps({f"k{n}": x for n, x in enumerate(X)}))
  full()
  convert_torch_file(folder / "x.pkl", folder / "x.npy", name=None)


def join(suffix: str):
  def write(folder: pathlib.Path, full) -> None:
    rows.write_rows(folder / f"part{suffix}", SCHEMA, COLUMNS)
    full()
    rows.join_row_files([folder / f"part{suffix}"] * 2, folder / f"out{suffix}")

  return write


def prepare(folder: pathlib.Path, full) -> None:
  events = {"user": ["u"] * 9, "item": list("abcdefghi"), "time": list(range(9))}
  full()
  from_dataframe(events, folder / "out", settings={"core.user": 0, "core.item": 0})


def table(folder: pathlib.Path, full) -> None:
  with open_partial_table(folder / "out", {"a": 1}, 8, "float32", overwrite=False) as partial:
    full()
    partial.append(X)


def new_table(folder: pathlib.Path, full) -> None:
  full()
  with open_partial_table(folder / "out", {"a": "b" * 99}, 8, "float32", overwrite=False):
    pass


def lock(folder: pathlib.Path, full) -> None:
  full()
  with lock_folder(folder):
    pass


def parts(folder: pathlib.Path, full) -> None:
  full()
  PartFiles(folder / "out.jsonl", 1, {"a setting": "of some length" * 9})


WRITERS = {
  "artifact": lambda f, full: (full(), artifact.write_artifact(f / "out", {"x": X}, {})),
  "text": lambda f, full: (full(), artifact.write_text(f / "out", "text" * 99)),
  "json lines": lambda f, full: (full(), rows.write_rows(f / "out.jsonl", SCHEMA, COLUMNS)),
  "parquet": lambda f, full: (full(), rows.write_rows(f / "out.parquet", SCHEMA, COLUMNS)),
  "joined json lines": join(".jsonl"),
  "joined parquet": join(".parquet"),
  "npy": lambda f, full: (full(), feature_table.write_feature_table(f / "out.npy", X)),
  "export": lambda f, full: (full(), write_checkpoint(f / "out", [("x", X)], {})),
  "synthetic": lambda f, full: (full(), dataset(f / "out")),
  "prepare": prepare,
  "cache": cache,
  "warm": warm,
  "convert": convert,
  "partial table": table,
  "new partial table": new_table,
  "lock": lock,
  "parts": parts,
}
GROW = ("lock",)  # its file stays, as far as it came


@pytest.mark.parametrize("name", WRITERS)
def test_one_line_and_nothing_half_written(tmp_path, name):
  with filling_disk() as full, pytest.raises(UserError) as caught:
    WRITERS[name](tmp_path, full)
  message = str(caught.value)
  assert str(tmp_path) in message and "file too large" in message.lower(), message
  if name not in GROW:
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and (f.stat().st_size == ROOM)]
    assert not [f for f in tmp_path.rglob(".*")]


def ranks(folder: pathlib.Path) -> None:
  write_ranks(folder, "test", "counts", dict.fromkeys(PROTOCOLS, np.ones(300, np.int32)))


@pytest.mark.parametrize("room", ROOM_OF_ARRAYS)
@pytest.mark.parametrize(
  "write",
  [
    lambda folder: write_array(folder / "x.npy", X),
    lambda folder: write_times(folder, np.arange(240)),
    lambda folder: write_synthetic(folder, users=9, items=20, clusters=4, seed=0),
    ranks,
  ],
)
def test_a_disk_that_takes_a_part_of_an_array_is_noticed(tmp_path, write, room):
  """C's own buffer would lose the end of a file, without an error or with one without a number."""
  with filling_disk() as full, pytest.raises(UserError) as caught:
    full(room)
    write(tmp_path)
  assert re.fullmatch(f"{tmp_path}.*\\.npy: file too large", str(caught.value))
  assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_cache_without_room_for_its_arrays_is_noticed(tmp_path):
  data = dataset(tmp_path)
  with filling_disk() as full, pytest.raises(UserError, match=r"cache/\w+\.npy: file too large$"):
    full(140)
    prepare_dataset(data, tmp_path / "cache")


@pytest.mark.parametrize(
  "array",
  [X, np.asfortranarray(X), X[::2], X[:0], np.arange(5, dtype=">i8"), X > 2, X.astype("f2")[:, :1]],
)
def test_an_array_has_the_bytes_that_numpy_writes(tmp_path, array):
  write_array(tmp_path / "x.npy", array)
  np.save(tmp_path / "y.npy", np.asarray(array, order="C"))
  assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()
