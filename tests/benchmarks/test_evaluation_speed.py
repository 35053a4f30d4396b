"""benchmarks/evaluation_speed.py as it is typed, small, and without PyTorch."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "evaluation_speed.py"


@pytest.mark.slow
def test_one_user_at_a_time_has_the_ranks_of_batches(tmp_path):
  """Histories longer than a row, items that come again, users without a test item."""
  rng = np.random.default_rng(0)
  users = [rng.integers(1, 30, n) for n in (2, 3, 50, 33, 34, *rng.integers(2, 20, 25))]
  lines = [" ".join(map(str, (u, *items))) for u, items in enumerate(users, start=1)]
  (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")
  environment = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  command = [sys.executable, SCRIPT, "--size=toy", f"--output={tmp_path}", f"--data={tmp_path}"]
  done = subprocess.run(
    [*command, "--contestants=batched,alone", "--rounds=2"],
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  head, *lines = done.stdout.splitlines()
  assert "users a second" in head and [x.split()[0] for x in lines[:2]] == ["batched", "alone"]
  figures = json.loads((tmp_path / "evaluation_speed.json").read_text())
  assert figures["users"] == sum(len(items) >= 3 for items in users) and figures["sample"] == 16
  batched, alone = figures["contestants"].values()
  assert alone["different"] == 0
  assert len(alone["rates"]) == len(batched["rates"]) == 2 and min(alone["rates"]) > 0
