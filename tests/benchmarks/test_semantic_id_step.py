"""benchmarks/semantic_id_step.py as it is typed, small, and without PyTorch."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "semantic_id_step.py"


def run(output: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
  environment = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(output / "compiled"),  # its two processes compile the same
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.run(
    [sys.executable, SCRIPT, "--size=toy", f"--output={output}", "--rounds=2", *flags],
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )


@pytest.mark.slow
def test_rate_and_memory_of_our_step_on_given_features(tmp_path):
  rng = np.random.default_rng(0)
  for m, V in (("text", 300), ("collaborative", 5)):
    np.save(tmp_path / f"{m}.npy", rng.standard_normal((20_001, V), np.float32))
  done = run(tmp_path / "out", "--contestants=ours", f"--data={tmp_path}")
  assert done.returncode == 0, done.stderr
  figures = json.loads((tmp_path / "out" / "semantic_id_step.json").read_text())
  assert figures["environment"]["device"] == "cpu"
  ((name, ours),) = figures["contestants"].items()
  assert (name, ours["batch"], len(ours["rates"])) == ("ours", 32, 2)
  assert min(ours["rates"]) > 0 and 0 < ours["first_loss"] < 100
  head, line = done.stdout.splitlines()
  assert "items a second" in head and line.split()[0] == "ours"
  tables = 4 * 20_001 * 305  # bytes, of which a step of 32 items takes few
  assert tables < ours["peak_gib"] * 2**30 < 2 * tables


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path):
  for flags, told in (
    (["--contestants=our"], "'our'"),
    (["--contestants=ours", f"--data={tmp_path}"], "collaborative.npy: no such file"),
  ):
    done = run(tmp_path, *flags)
    assert done.returncode == 2 and told in done.stderr, done.stderr
