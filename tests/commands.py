"""The commands as processes of their own, as a user starts them."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]


def environment() -> dict[str, str]:
  return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def start(program: str, *arguments: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", f"mmesid_jax.{program}", *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment(),
  )


def benchmark(name: str, *arguments: str, timeout: int = 300) -> subprocess.CompletedProcess:
  """benchmarks/NAME.py, to its end."""
  return subprocess.run(
    [sys.executable, f"benchmarks/{name}.py", *arguments],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=timeout,
  )


def run(program: str, *arguments: str) -> tuple[int, str, str]:
  """Exit status, stdout, stderr; the process is a fork of a `command_server`."""
  with tempfile.TemporaryDirectory() as folder:
    files = {name: os.path.join(folder, name) for name in ("out", "err")}
    request = {"program": program, "arguments": arguments, "env": environment(), **files}
    server = command_server()
    print(json.dumps(request), file=server.stdin, flush=True)
    status = int(server.stdout.readline())
    return status, *(pathlib.Path(file).read_text() for file in files.values())


@functools.cache
def command_server() -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "tests/command_server.py"],
    cwd=ROOT,
    env=environment(),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )


def refused(program: str, *arguments: str) -> str:
  """The one line that the command ends with."""
  status, _, err = run(program, *arguments)
  assert status == 2, err
  assert err.startswith("error: ") and err.count("\n") == 1, err
  return err
