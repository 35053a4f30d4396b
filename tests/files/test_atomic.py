"""Files and folders appear whole or not at all, and others may read them."""

import concurrent.futures
import os
import pathlib
import threading

import numpy as np
import pytest
import safetensors.numpy

from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_file, atomic_folder, open_atomic


def mode(path: pathlib.Path) -> int:
  return path.stat().st_mode & 0o777


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
  before = os.umask(request.param)
  yield request.param
  os.umask(before)


def save(path: pathlib.Path) -> None:
  safetensors.numpy.save_file({"x": np.zeros(3)}, path)  # which makes its files private


def test_permissions_are_those_of_the_umask(tmp_path, umask):
  with atomic_file(tmp_path / "a") as temporary:
    save(temporary)
  with open_atomic(tmp_path / "b") as file:
    file.write(b"b")
  with atomic_folder(tmp_path / "folder") as temporary:
    save(temporary / "c")
    (temporary / "inner").mkdir()
    (temporary / "inner" / "d").write_text("d")
  for name in ("a", "b", "folder/c", "folder/inner/d"):
    assert mode(tmp_path / name) == 0o666 & ~umask, name
  assert mode(tmp_path / "folder") == 0o777 & ~umask


def test_what_raises_leaves_everything_as_it_was(tmp_path):
  path, folder = tmp_path / "file", tmp_path / "folder"
  path.write_text("before")
  folder.mkdir()
  (folder / "owned").write_text("before")
  with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
    temporary.write_text("half")
    raise ZeroDivisionError
  with pytest.raises(ZeroDivisionError), atomic_folder(folder, replaces=("owned",)) as temporary:
    (temporary / "owned").write_text("half")
    raise ZeroDivisionError
  assert path.read_text() == (folder / "owned").read_text() == "before"
  assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
  both_started = threading.Barrier(2)

  def write(letter: str) -> None:
    with open_atomic(tmp_path / "file") as file:
      file.write(500 * letter.encode())
      both_started.wait(timeout=60)
      file.write(500 * letter.encode())

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(write, "ab"))
  assert (tmp_path / "file").read_text() in (1000 * "a", 1000 * "b")
  assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_folder_replaces_only_what_it_wrote(tmp_path):
  folder = tmp_path / "folder"
  for text in ("first", "second"):
    with atomic_folder(folder, replaces=("a", "b")) as temporary:
      (temporary / "a").write_text(text)
      if text == "first":
        (temporary / "b").write_text(text)
    (folder / "notes").touch()
  assert (folder / "a").read_text() == "second"
  assert sorted(f.name for f in folder.iterdir()) == ["a", "notes"]  # no b of the first one
  with pytest.raises(UserError, match="exists by now"), atomic_folder(folder) as temporary:
    (temporary / "a").write_text("third")
  assert (folder / "a").read_text() == "second"
  assert [f.name for f in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", ["loop", "loop/x"])
def test_links_that_lead_in_a_circle_are_one_line(tmp_path, name):
  (tmp_path / "loop").symlink_to("loop")
  with pytest.raises(UserError, match="loop.*: its symbolic links lead in a circle; remove"):
    with atomic_folder(tmp_path / name):
      pytest.fail("written")
  assert os.listdir(tmp_path) == ["loop"]
