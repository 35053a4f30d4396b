"""benchmarks/blend_cost.py as it is typed, on the smallest workdir."""

import json

import pytest
from commands import benchmark


@pytest.mark.slow
def test_both_answer_requests_of_one_and_of_many(blended, tmp_path):
  done = benchmark("blend_cost", f"--workdir={blended}", f"--output={tmp_path}", "--rounds=1")
  assert done.returncode == 0, done.stderr[-2000:]
  rates = json.loads((tmp_path / "blend_cost.json").read_text())["rates"]
  assert {size: list(found) for size, found in rates.items()} == {
    size: ["network", "blend"] for size in ("1", "64")
  }
  assert "64 histories a request" in done.stdout
