"""A file that grows under a known name is never written through a link."""

import os

import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files.append import open_to_append
from mmesid_jax.files.lock import lock_folder
from mmesid_jax.files.resumable import open_partial_table
from mmesid_jax.training.metrics_log import MetricsLog


def append(folder):
  with open_to_append(folder / "name"):
    pass


def lock(folder):
  with lock_folder(folder):
    pass


def log(folder):
  MetricsLog(folder, 0).close()


def table(folder):
  with open_partial_table(folder / "name", {"a": 1}, 4, "float32", overwrite=True):
    pass


@pytest.mark.parametrize(
  ("write", "name"), [(append, "name"), (lock, "lock"), (log, "metrics.jsonl"), (table, "name")]
)
@pytest.mark.parametrize("target", ["{}", None])
def test_a_link_is_refused_and_its_target_stays(tmp_path, write, name, target):
  owned, folder = tmp_path / "owned", tmp_path / "folder"
  folder.mkdir()
  if target is not None:
    owned.write_text(target)
  (folder / name).symlink_to(owned)
  try:
    write(folder)
  except UserError as error:
    assert f"{folder / name}: is a symbolic link" in str(error)  # noqa: PT017
  else:
    assert not (folder / name).is_symlink()  # replaced
  assert (owned.read_text() if owned.exists() else None) == target


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "name")
  with pytest.raises(UserError, match="is not a regular file"):
    append(tmp_path)


def test_it_is_read_and_grows_and_has_the_umask_of_the_user(tmp_path):
  before = os.umask(0o027)
  try:
    for text in (b"a", b"b"):
      with open_to_append(tmp_path / "name") as file:
        file.write(text)
        file.seek(0)
        assert file.read().endswith(text)
  finally:
    os.umask(before)
  assert (tmp_path / "name").read_bytes() == b"ab"
  assert (tmp_path / "name").stat().st_mode & 0o777 == 0o640


def test_event_files_of_one_second_have_names_of_their_own(tmp_path):
  for _ in range(2):
    log(tmp_path)
  assert len(list((tmp_path / "tensorboard").iterdir())) == 2
