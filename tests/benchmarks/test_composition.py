"""benchmarks/composition.py as it is typed, on the smallest workdir."""

import json
import pathlib

import pytest
from commands import benchmark

pytest.importorskip("matplotlib")


def run(workdir: pathlib.Path, output: pathlib.Path) -> str:
  flags = (f"--workdir={workdir}", f"--output={output}", "--seeds=0", "--responses=1", "--rounds=1")
  flags += ("--compositions=packed,two targets,one target", "--share=0.5")
  done = benchmark("composition", *flags, timeout=600)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.slow
def test_trains_both_ways_and_skips_what_is_done(trained, tmp_path):
  table = run(trained, tmp_path)
  assert [line.split()[:2] for line in table.splitlines() if line.startswith("       1")] == [
    ["1", "packed"],
    ["1", "two"],
    ["1", "one"],
  ]
  figures = json.loads((tmp_path / "composition.json").read_text())
  packed, _, alone = figures["rows"]
  assert packed["targets_per_second"] > 0 and len(packed["curve"]) == 4
  reference = alone["metrics"]["masked nDCG@5"]
  assert (reference["to_reference"], reference["interval"]) == (0, [0, 0])
  assert packed["metrics"]["masked nDCG@5"]["seeds"] != []
  assert (tmp_path / "composition.svg").stat().st_size < 100_000

  marks = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/run.json")}
  assert len(marks) == 3
  run(trained, tmp_path)
  assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/run.json")} == marks
