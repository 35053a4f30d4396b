"""benchmarks/growth.py as it is typed, with the smallest point of every series."""

import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib")
ROOT = pathlib.Path(__file__).parents[2]


def run(output: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
  environment = {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  return subprocess.run(
    [sys.executable, "benchmarks/growth.py", f"--output={output}", "--rounds=2", *flags],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


VARIANTS = {
  "items": ["full", "chunked", "sampled"],
  "history": ["shared-prefix row", "one sample per target"],
  "width": ["packed"],
  "ids": ["build", "beam of 20", "beam of 50"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_measures_and_draws_a_series(name, tmp_path):
  flags = ("--most_items=3000", "--most_history=6", "--most_width=64")
  done = run(tmp_path, f"--only={name}", *flags)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "growth.json").read_text())
  assert found["environment"]["device"] == "cpu"
  assert list(found[name]) == VARIANTS[name]
  assert all(point["seconds"] > 0 for series in found[name].values() for point in series)
  picture = ElementTree.parse(tmp_path / f"growth_{name}.svg").getroot()
  texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
  assert set(VARIANTS[name]) <= set(texts)  # as text, not as paths
  if name == "items":
    (full,), (sampled,) = found["items"]["full"], found["items"]["sampled"]
    table, scores = 4 * 3001 * 64, 4 * 3001 * 256
    assert full["bytes"] > 2 * table + scores > sampled["bytes"] > 2 * table


@pytest.mark.slow
def test_what_does_not_fit_is_not_run(tmp_path):
  table_and_gradient = 2 * 4 * 10_001 * 64 / 2**30
  done = run(tmp_path, "--only=items", "--most_items=10000", f"--limit_gib={table_and_gradient}")
  assert done.returncode == 0, done.stderr
  (point,) = json.loads((tmp_path / "growth.json").read_text())["items"]["full"]
  assert point["seconds"] is None and point["bytes"] > table_and_gradient * 2**30
  assert done.stdout.count("does not fit") == 3
  assert "too large to run" in (tmp_path / "growth_items.svg").read_text()


def test_an_unknown_series_is_refused(tmp_path):
  done = run(tmp_path, "--only=users")
  assert done.returncode == 2
  assert done.stderr == "error: --only: no users; expected some of items, history, width, ids\n"
