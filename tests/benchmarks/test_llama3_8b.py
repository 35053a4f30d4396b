"""benchmarks/llama3_8b.py as it is typed, at toy size; what fails is told in its line."""

import json

import pytest
from commands import benchmark


@pytest.mark.slow
def test_every_part_has_a_line(tmp_path):
  done = benchmark("llama3_8b", "--size=toy", f"--output={tmp_path}", "--rounds=1", timeout=1500)
  assert done.returncode == 0, done.stderr[-2000:]
  parts = json.loads((tmp_path / "llama3_8b.json").read_text())["parts"]
  failed = {name: part["failed"] for name, part in parts.items() if "failed" in part}
  assert len(parts) == 12
  assert set(failed) <= {"torch_good", "torch_released"}, failed  # where torch is not installed
  assert all(name in done.stdout for name in parts)
