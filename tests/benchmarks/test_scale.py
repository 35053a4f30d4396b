"""benchmarks/scale.py as it is typed, small."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_in_less_memory_than_the_table_takes(tmp_path):
  environment = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": str(ROOT),
  }
  sizes = ("--items=20000", "--width=2000", "--steps=2", "--code_width=8", "--codes=8")
  done = subprocess.run(
    [sys.executable, ROOT / "benchmarks" / "scale.py", f"--output={tmp_path}", *sizes],
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  figures = json.loads((tmp_path / "scale.json").read_text())
  assert list(figures["parts"]) == ["check", "k-means start", "train", "export"]
  assert all(part["seconds"] > 0 for part in figures["parts"].values())
  table = np.load(tmp_path / "features.npy", mmap_mode="r", allow_pickle=False)
  assert table.shape == (20_001, 2000) and table.dtype == np.float16
  assert figures["table_gib"] * 2**30 > table.nbytes
  float32 = 2 * table.nbytes / 2**30
  for name in ("check", "train"):  # chunks of 32 MiB; batches of 1,024 rows
    assert figures["parts"][name]["peak_gib"] < float32, name
  code = np.load(tmp_path / "codes.npy", allow_pickle=False)
  assert code.shape == (20_001, 4) and not code[0].any() and 0 <= code.min() < code.max() < 8
  head, blank, columns, *lines = done.stdout.splitlines()
  assert "20,000 items x 2000" in head and not blank and "peak GiB" in columns
  assert [line.split("  ")[0] for line in lines] == list(figures["parts"])
