"""The commands as processes of their own, as a user starts them."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def start(program: str, *arguments: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", f"mmesid_jax.{program}", *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
  )


def benchmark(name: str, *arguments: str, timeout: int = 300) -> subprocess.CompletedProcess:
  """benchmarks/NAME.py, to its end."""
  return subprocess.run(
    [sys.executable, f"benchmarks/{name}.py", *arguments],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=timeout,
  )


def run(program: str, *arguments: str) -> tuple[int, str, str]:
  """Exit status, stdout, stderr."""
  process = start(program, *arguments)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def refused(program: str, *arguments: str) -> str:
  """The one line that the command ends with."""
  status, _, err = run(program, *arguments)
  assert status == 2, err
  assert err.startswith("error: ") and err.count("\n") == 1, err
  return err
