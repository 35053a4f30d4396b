"""The lines that training prints about the histories that it reads."""

import json

import numpy as np

from mmesid_jax import pipeline
from mmesid_jax.data.synthetic import write_synthetic


def test_cut_histories_and_repeats_are_said_with_what_to_do(tiny, tmp_path, capsys):
  """60 users; 6 of them meet their test item again, and rows hold fewer items than most have."""
  write_synthetic(tmp_path / "data", users=60, items=40, clusters=4, seed=0)
  file = tmp_path / "data" / "sequences.txt"
  lines = [line.split() for line in file.read_text().splitlines()]
  for line in lines[:6]:
    line[-1] = line[1]
  file.write_text("".join(" ".join(line) + "\n" for line in lines))
  longest = np.array([len(line) - 1 - 2 - 1 for line in lines])  # before the last training target
  cut = int((longest > 8).sum())
  assert 2 < cut < 60
  config = tiny(
    changes={
      "data.source": "files",
      "data.dir": str(tmp_path / "data"),
      "stages": ("collaborative",),
      "collaborative.row_length": 8,
      "collaborative.epochs": 1,
    }
  )
  pipeline.run_pipeline(config, tmp_path / "run")
  out = capsys.readouterr().out
  assert f"({cut} cut)" in out
  assert f"collaborative: {cut / 60:.0%} of the users have histories longer than the 8 items" in out
  assert f"--config.collaborative.row_length={32 if longest.max() <= 32 else 64} would cut" in out
  said = "6 of 60 (10.0%) of the test items"
  before, after = out.index(said), out.rindex(said)
  assert before < out.index("Stage 1 of 1") < after  # to choose by, and to read the table by
  assert "--config.evaluation.select=unmasked/nDCG@10" in out and "--repeat" in out
  evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
  assert evaluation["repeated"] == 6
  ranks = np.load(tmp_path / "run" / "ranks" / "test-SASRec.npy")
  assert (ranks[0, :6] == 40).all()
