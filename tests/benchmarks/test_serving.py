"""benchmarks/serving.py as it is typed, on the smallest workdir."""

import json

import pytest
from commands import benchmark


@pytest.mark.slow  # the service itself is tested in tests/service
def test_every_number_of_clients_is_answered(blended, tmp_path):
  flags = ("--clients=1,3", "--seconds=0.5")
  done = benchmark("serving", f"--workdir={blended}", f"--output={tmp_path}", *flags)
  assert done.returncode == 0, done.stderr[-2000:]
  load = json.loads((tmp_path / "serving.json").read_text())["load"]
  assert list(load) == ["1", "3"] and all(found["per_second"] > 0 for found in load.values())
  assert load["1"]["histories_per_batch"] == 1
