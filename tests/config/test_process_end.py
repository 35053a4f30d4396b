"""Signals end a command with one line, and nothing of the process runs after its end."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ENDS = """
import atexit, os, signal, sys, time
from mmesid_jax.config.command_line import run_command
from mmesid_jax.errors import Interrupted

class Late:
  def __del__(self):
    print("the interpreter is taken down")

class Deleted:
  def __del__(self):
    os.kill(os.getpid(), signal.SIGINT)

def wrapped():
  try:
    os.kill(os.getpid(), signal.SIGTERM)
  except KeyboardInterrupt as error:
    raise RuntimeError("by a library") from error

def cleaned():
  try:
    os.kill(os.getpid(), signal.SIGTERM)
  finally:
    raise RuntimeError("while a library cleans up")

def swallowed():
  try:
    os.kill(os.getpid(), signal.SIGTERM)
  except KeyboardInterrupt:
    error = ImportError("numpy._core.multiarray failed to import")
  raise error

def deleted():
  Deleted()
  time.sleep(60)

def saved():
  atexit.register(close)
  raise Interrupted("SIGTERM at step 3")

def close():
  os.kill(os.getpid(), signal.SIGTERM)  # a second one, at the end
  time.sleep(0.01)
  print("closed")

late = Late()
late.itself = late
MAINS = {
  "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
  "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
  "wrapped": wrapped,
  "cleaned": cleaned,
  "swallowed": swallowed,
  "imported": lambda: __import__("extension"),
  "deleted": deleted,
  "saved": saved,
  "done": lambda: print("done"),
  "deaf": lambda: sys.stdout.close(),
  "exit": lambda: sys.exit(3),
}

def main(argv):
  MAINS[os.environ["MAIN"]]()

run_command(main)
"""
EXTENSION = """
import os, signal, traceback
try:
  os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
  traceback.print_exc()
  raise ImportError("numpy._core.multiarray failed to import") from None
"""
AGAIN = "what was finished is kept: run the same command again"


def hear_signals() -> None:
  """In a child: the tests may run in the background of a script, where SIGINT is ignored."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
  "name, status, printed",
  [
    ("SIGINT", 75, f"stopped: SIGINT; {AGAIN}\n"),
    ("SIGTERM", 75, f"stopped: SIGTERM; {AGAIN}\n"),
    ("wrapped", 75, f"stopped: SIGTERM; {AGAIN}\n"),
    ("swallowed", 75, f"stopped: SIGTERM; {AGAIN}\n"),
    ("imported", 75, f"stopped: SIGTERM; {AGAIN}\n"),
    ("cleaned", 75, f"stopped: SIGTERM; {AGAIN}\n"),
    ("deleted", 75, f"stopped: SIGINT; {AGAIN}\n"),
    ("saved", 75, "stopped: SIGTERM at step 3\n"),
    ("done", 0, ""),
    ("deaf", 0, ""),
    ("exit", 3, ""),
  ],
)
def test_a_signal_is_one_line_and_the_process_ends_at_once(tmp_path, name, status, printed):
  """The interpreter is not taken down: what is left alive is not deleted."""
  (tmp_path / "ends.py").write_text(ENDS)
  (tmp_path / "extension.py").write_text(EXTENSION)
  result = subprocess.run(
    [sys.executable, "ends.py"],
    cwd=tmp_path,
    env={"PYTHONPATH": ":".join(sys.path), "MAIN": name},
    preexec_fn=hear_signals,
    capture_output=True,
    text=True,
  )
  assert (result.returncode, result.stderr) == (status, printed)
  assert result.stdout == {"done": "done\n", "saved": "closed\n"}.get(name, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_is_ignored_stays_so(tmp_path, name):
  """As SIGINT is after nohup, and in the background of a script."""
  (tmp_path / "ends.py").write_text(ENDS)
  ignored = f"trap '' {name.removeprefix('SIG')}; exec {sys.executable} ends.py"
  environment = {"PYTHONPATH": ":".join(sys.path), "MAIN": name}
  result = subprocess.run(
    ["bash", "-c", ignored], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert (result.returncode, result.stderr) == (0, "")


def run_python(folder, path, *words):
  """`python ...` in the folder, with modules from the path first."""
  return subprocess.run(
    [sys.executable, *words],
    cwd=folder,
    env={"PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])},
    preexec_fn=hear_signals,
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_modules_are_imported_is_one_line(tmp_path, name):
  (tmp_path / "absl.py").write_text(f"import os, signal; os.kill(os.getpid(), signal.{name})")
  script = tmp_path / "any_name"  # as pip writes it
  script.write_text("import sys\nfrom mmesid_jax.__main__ import main\nsys.exit(main())")
  for words in (("-m", "mmesid_jax.train"), ("-m", "mmesid_jax", "train"), (script, "train")):
    result = run_python(tmp_path, [tmp_path], *words)
    line = f"stopped: {name}; nothing was begun: run the same command again\n"
    assert (result.returncode, result.stderr) == (75, line)


def test_modules_in_the_folder_that_one_stands_in_do_not_run(tmp_path):
  for name in ("absl", "tqdm", "numpy", "torch"):
    (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} ran')")
  explain = ("-m", "mmesid_jax.train", "--config=quickstart", "--explain=seed")
  result = run_python(tmp_path, [], *explain)
  assert (result.returncode, result.stderr) == (0, "")
  assert "a whole number" in result.stdout
  result = run_python(ROOT, [], *explain)  # a clone whose package is not installed
  assert (result.returncode, result.stderr) == (0, "")


BUSY = """
import threading, time
import jax
from mmesid_jax.config.command_line import run_command
from mmesid_jax.errors import Interrupted

def work():
  while True:
    jax.device_put(1.0).block_until_ready()

def main(argv):
  for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
  time.sleep(0.5)
  raise Interrupted("saved")

run_command(main)
"""


def test_threads_that_are_busy_in_libraries_do_not_abort_the_end():
  """Else: "terminate called without an active exception", where one wants the interpreter back."""
  result = subprocess.run(
    [sys.executable, "-c", BUSY],
    env={**os.environ, "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert (result.returncode, result.stderr) == (75, "stopped: saved\n")
