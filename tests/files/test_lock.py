"""Two runs never train in one workdir, and one that died refuses nobody."""

import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files.lock import lock_folder

HOLDER = """
import pathlib, sys, time
from mmesid_jax.files.lock import lock_folder
with lock_folder(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(100)
"""


def test_the_second_run_is_refused_by_the_name_of_the_first(tmp_path):
  with lock_folder(tmp_path / "run"):
    for _ in range(2):  # the refused one leaves the file as it is
      with pytest.raises(UserError) as caught, lock_folder(tmp_path / "run"):
        pytest.fail("two runs train here")
      assert str(tmp_path / "run") in str(caught.value)
      assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in str(caught.value)
    with lock_folder(tmp_path / "other"):
      pass
  with lock_folder(tmp_path / "run"):
    pass
  assert (tmp_path / "run" / "lock").read_text().count("process") == 1


def test_a_killed_run_holds_nothing(tmp_path):
  command = [sys.executable, "-c", HOLDER, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
    try:
      assert holder.stdout.readline() == "held\n"
      with pytest.raises(UserError, match=f"process {holder.pid} on"), lock_folder(tmp_path):
        pytest.fail("two runs train here")
    finally:
      holder.kill()
  with lock_folder(tmp_path):
    assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
  def flock(file, how):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with lock_folder(tmp_path):
    pass
  assert f"warning: {tmp_path}/lock: No locks available" in capsys.readouterr().err
