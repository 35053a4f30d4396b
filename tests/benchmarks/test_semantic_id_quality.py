"""benchmarks/semantic_id_quality.py as it is typed, on the smallest data."""

import json

import pytest
from commands import benchmark

SIZES = (
  *("collaborative.width=8", "collaborative.layers=1", "collaborative.epochs=1"),
  *(
    "semantic_ids.hidden=[16]",
    "semantic_ids.quantizer.levels=2",
    "semantic_ids.quantizer.codes=4",
  ),
  *("semantic_ids.batch=16", "semantic_ids.epochs=1", "recommender.width=8"),
  *("recommender.layers=1", "recommender.head_width=4", "recommender.mlp_width=16"),
)


def run(*flags: str) -> str:
  done = benchmark("semantic_id_quality", *flags)
  return done.stdout if done.returncode == 0 else done.stderr[-2000:]


@pytest.mark.slow
def test_trains_variants_and_skips_what_is_done(trained, tmp_path):
  flags = (
    *(
      f"--data={trained / 'synthetic'}",
      f"--output={tmp_path}",
      "--variants=paper-mmd,ours,kmeans",
    ),
    *(f"--set={size}" for size in SIZES),
  )
  first, again = run(*flags), run(*flags)
  rows = [line.split()[:2] for line in again.splitlines() if "%" in line and "/" not in line]
  assert ["paper-mmd", "collaborative"] in rows and ["kmeans", "joint"] in rows, again
  assert first.count("collaborative: taken from") == 2  # trained once
  assert again.count("semantic_ids: up to date") == 3
  found = json.loads((tmp_path / "semantic_id_quality.json").read_text())["variants"]
  assert -1 <= found["ours"]["text"]["tau"] <= 1
  assert found["ours"]["joint"]["tau"] is None
  configs = {n: json.loads((tmp_path / n / "config.json").read_text()) for n in found}
  assert configs["paper-mmd"]["semantic_ids"]["reconstruction"] == "mmd"
  assert not configs["paper-mmd"]["semantic_ids"]["standardize"]
  assert configs["kmeans"]["semantic_ids"]["quantizer"]["kind"] == "kmeans"


def test_an_unknown_variant_is_one_line(tmp_path):
  line = run("--data=x", f"--output={tmp_path}", "--variants=our")
  assert "error: --variants=our: unknown; did you mean ours?" in line
