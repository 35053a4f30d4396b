"""A disk that is full, read-only or gone: one line, what was there before is whole, and the run
goes on when there is space again."""

import contextlib
import errno
import os
import pathlib
import resource
import shutil
import subprocess
import time

import numpy as np
import pytest
from commands import run
from training.test_checkpoint import batches, params, restored, state
from training.test_loop import task

from mmesid_jax.errors import Diverged, UserError, disk_fault
from mmesid_jax.files import artifact
from mmesid_jax.files.atomic import open_atomic
from mmesid_jax.files.feature_table import write_array
from mmesid_jax.training import checkpoint
from mmesid_jax.training.checkpoint import Checkpoints
from mmesid_jax.training.loop import fit
from mmesid_jax.training.metrics_log import MetricsLog

FULL = "no space left on device"


@pytest.fixture
def disk(tmp_path):
  """A file system of 4 MB."""
  path = tmp_path / "disk"
  path.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f"a file system can only be mounted by root: {error}")
  yield path
  subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: pathlib.Path, leave: int = 0) -> pathlib.Path:
  """A file that takes all space but so many bytes."""
  filler = disk / "filler"
  with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
    while True:
      file.write(bytes(4096))
  os.truncate(filler, max(0, filler.stat().st_size - leave))
  return filler


@contextlib.contextmanager
def small_files(size: int):
  """Of no file can more than so many bytes be written; what anybody may set."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("leave", [0, 8192, 32768, 65536])
def test_a_run_that_fills_the_disk_goes_on_when_there_is_space(disk, tmp_path, leave):
  whole = fit(task(steps=24), tmp_path / "whole", log_every=3, save_every=5)
  folder, calls = disk / "line", []

  def fill_at_third_validation():
    calls.append(1)
    if len(calls) == 3:
      fill(disk, leave)

  with pytest.raises(UserError) as caught:
    fit(task(steps=24, on_validate=fill_at_third_validation), folder, log_every=3, save_every=5)
  last = max(int(file.name) for file in (folder / "steps").iterdir() if file.name.isdecimal())
  message = f"{folder}: {FULL}; the last good checkpoint is step {last} in {folder}"
  assert str(caught.value) == message and last >= 5
  (disk / "filler").unlink()
  resumed = fit(task(steps=24), folder, log_every=3, save_every=5)
  np.testing.assert_array_equal(resumed.model.weight[...], whole.model.weight[...])
  for part in ("steps", "best"):  # nothing half written is left
    assert all(file.name.isdecimal() for file in (folder / part).iterdir())
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  expected = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
  assert [x for x in lines if "valid/" in x] == [x for x in expected if "valid/" in x]


@pytest.mark.parametrize("folder", ["steps", "best"])
def test_a_disk_that_is_full_once_the_arrays_are_written(disk, monkeypatch, folder):
  sha256 = checkpoint.file_sha256

  def fill_before_the_digests(file):
    if folder in file.parts and not (disk / "filler").exists():
      fill(disk)
    return sha256(file)

  monkeypatch.setattr(checkpoint, "file_sha256", fill_before_the_digests)
  with pytest.raises(UserError) as caught, Checkpoints(disk / "line") as checkpoints:
    checkpoints.save_best(3, params(3))
    checkpoints.save(3, state(3), batches())
  assert str(caught.value) == f"{disk}/line: {FULL}; no checkpoint was saved yet in {disk}/line"


@pytest.mark.parametrize("best", [False, True])
def test_what_failed_in_the_background_stops_the_next_save(tmp_path, best):
  with pytest.raises(UserError, match="file too large; the last good checkpoint is step 3 in"):
    with Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(3, state(3), batches())
      checkpoints.wait()
      with small_files(10_000):
        if best:
          checkpoints.save_best(4, params(4))
        else:
          checkpoints.save(4, state(4), batches())
        while (
          checkpoints._steps.is_saving_in_progress() or checkpoints._best.is_saving_in_progress()
        ):
          pass
      checkpoints.save(5, state(5), batches())
      pytest.fail("the next save took no notice")
  assert restored(tmp_path) == (3, 0)


def test_what_failed_in_the_last_write_is_told_before_the_end(tmp_path):
  with pytest.raises(UserError, match="file too large; no checkpoint was saved yet in"):
    with small_files(10_000), Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(4, state(4), batches())


def test_an_error_of_another_kind_stays_what_it_is(tmp_path):
  with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path):
    raise ZeroDivisionError
  with pytest.raises(Diverged), Checkpoints(tmp_path):
    raise Diverged("nan") from OSError(errno.ENOSPC, FULL)


def test_a_folder_that_went_away_is_not_made_again(tmp_path):
  folder, calls = tmp_path / "line", []

  def remove_at_second_validation():
    calls.append(1)
    if len(calls) == 2:
      time.sleep(1)  # what is being written would come back
      shutil.rmtree(folder)

  with pytest.raises(UserError, match=f"{folder}.*: no such directory any more"):
    fit(task(on_validate=remove_at_second_validation), folder, log_every=3, save_every=2)
  assert not folder.exists()


def test_metrics_that_find_no_space_say_so(disk):
  log = MetricsLog(disk / "line", 0)
  fill(disk)
  with pytest.raises(OSError, match="No space left"):
    for step in range(100_000):
      log.write(step, {"loss": 1.0})


def write_artifact(path: pathlib.Path, size: int) -> None:
  artifact.write_artifact(path, {"x": np.zeros(size)}, {"stage": "collaborative"})


def write_numbers(path: pathlib.Path, size: int) -> None:
  write_array(path, np.zeros(size, np.uint8))


def write_by(path: pathlib.Path, size: int) -> None:
  with open_atomic(path) as file:
    file.write(bytes(size))


@pytest.mark.parametrize("write", [write_artifact, write_numbers, write_by])
def test_an_artifact_is_whole_or_as_it_was(tmp_path, write):
  path = tmp_path / "x.safetensors"
  for before in (None, 5):
    if before:
      write(path, before)
    content = path.read_bytes() if before else None
    with small_files(10_000), pytest.raises(UserError) as caught:
      write(path, 50_000)
    assert str(caught.value) == f"{path}: file too large"
    assert [file.name for file in tmp_path.iterdir()] == (["x.safetensors"] if before else [])
    assert (path.read_bytes() if before else None) == content


def test_a_disk_may_refuse_as_late_as_at_fsync(tmp_path, monkeypatch):
  def fsync(file):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

  monkeypatch.setattr(os, "fsync", fsync)
  with pytest.raises(UserError, match="x.json: disk quota exceeded"):
    artifact.write_text(tmp_path / "x.json", "{}")
  assert not [*tmp_path.iterdir()]


def test_faults_of_the_disk_are_told_from_other_errors():
  wrapped = ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [28]")
  assert disk_fault(wrapped) == FULL
  assert disk_fault(OSError(errno.EROFS, "in another language")) == "read-only file system"
  late = RuntimeError("save failed")
  late.__cause__ = wrapped
  assert disk_fault(late) == FULL
  assert disk_fault(ValueError("shapes differ")) is None and disk_fault(None) is None


def command(data: pathlib.Path, workdir: pathlib.Path) -> list[str]:
  return [
    "--config=configs/beauty.py",
    f"--workdir={workdir}",
    f"--config.data.dir={data}",
    "--config.features.text=",
    "--config.stages=('collaborative',)",
    "--config.run.compilation_cache=False",
    "--config.collaborative.width=512",  # its checkpoint is larger than the disk
  ]


@pytest.mark.slow
def test_commands_say_in_one_line_what_the_disk_refused(trained, disk):
  data = trained / "synthetic"
  status, _, err = run("train", *command(data, disk / "run"))
  assert status == 2 and "Traceback" not in err and "ERROR" not in err, err
  folder = disk / "run" / "collaborative"
  last = err.strip().splitlines()[-1]
  assert last == f"error: {folder}: {FULL}; no checkpoint was saved yet in {folder}"
  assert not list(disk.rglob("*.safetensors*"))
  fill(disk)
  subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
  status, _, err = run("train", *command(data, disk / "run"))
  assert (status, err) == (2, f"error: {disk}/run/lock: read-only file system\n")
