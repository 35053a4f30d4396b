"""Held-out items from the command to the table."""

import json
import re

import numpy as np
import pytest
from commands import refused

from mmesid_jax.errors import UserError
from mmesid_jax.experiments import cold_start_run
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.files.lock import lock_folder

SPLIT = {"fraction": 0.1, "split_seed": 3}


def start(config, path, *, overwrite=False, **changes):
  cold_start_run.run_cold_start(config, path, **{**SPLIT, **changes}, overwrite=overwrite)


def test_held_out_items_are_ranked_by_a_model_that_never_saw_them(tiny, tmp_path, capsys):
  path = tmp_path / "run"
  start(tiny(), path)
  out = capsys.readouterr().out
  assert out.count("MME-SID") == 4 + 2 + 2
  assert len(re.findall(r"^all items +chance ", out, re.M)) == 2
  split = json.loads((path / "cold_split.json").read_text())
  assert len(split["cold"]) == 4 and len(split["warm"]) == 36
  for stage in ("collaborative", "semantic_ids", "recommender"):
    _, header = read_artifact(path / f"{stage}.safetensors", stage)
    assert header["num_items"] == 36
  table = np.load(path / "synthetic" / "text.npy", allow_pickle=False)
  means = read_artifact(path / "semantic_ids.safetensors", "semantic_ids")[0]["means.text"]
  np.testing.assert_allclose(means, table[split["warm"]].mean(0), rtol=1e-4, atol=1e-5)

  result = json.loads((path / "cold_start.json").read_text())
  assert result["items"] == {"warm": 36, "cold": 4}
  anywhere = result["anywhere in a user's sequence"]
  later = result["after the user's training part"]
  met = [s.split()[1:] for s in (path / "synthetic" / "sequences.txt").read_text().splitlines()]
  cold = set(map(str, split["cold"]))
  # nobody meets an item twice here, so every meeting after a warm item is a target
  assert anywhere["targets"] == sum(
    item in cold and bool(set(sequence[:t]) - cold)
    for sequence in met
    for t, item in enumerate(sequence)
  )
  assert 0 < later["targets"] < anywhere["targets"] and anywhere["items"] <= 4
  last = result["nearest"]["last"]
  assert list(anywhere["models"]) == ["chance", f"nearest to last {last}", "MME-SID"]
  for model, judged in anywhere["models"].items():
    assert list(judged) == ["all items", "cold only"]
    assert judged["cold only"]["HR@5"]["mean"] == 1  # four candidates
    for metrics in judged.values():
      for v in metrics.values():
        assert model == "chance" or v["low"] <= v["mean"] <= v["high"]

  known = result["known items"]["MME-SID"]
  evaluation = json.loads((path / "evaluation.json").read_text())["models"]["MME-SID"]["masked"]
  for name, metric in known["known items"].items():
    assert metric["mean"] == pytest.approx(evaluation[name]["mean"], abs=1e-6)
    assert known["all items"][name]["mean"] <= metric["mean"] + 1e-6  # more candidates
  assert known["all items"]["nDCG@10"]["mean"] < known["known items"]["nDCG@10"]["mean"]

  files = {f: f.stat().st_mtime_ns for f in path.glob("*.safetensors")}
  start(tiny(), path)  # trains nothing, ranks again
  assert {f: f.stat().st_mtime_ns for f in path.glob("*.safetensors")} == files
  assert json.loads((path / "cold_start.json").read_text()) == result
  with pytest.raises(
    UserError, match=r"cold_split.json: .*fraction was 0.1, now 0.2; .*--overwrite"
  ):
    start(tiny(), path, fraction=0.2)
  (path / "cold_split.json").write_text("{}")
  with pytest.raises(UserError, match="cold_split.json: not a split"):
    start(tiny(), path)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"features.text": ""}, "new items need content"),
    ({"features.collaborative": "own.npy"}, "vectors made elsewhere may know"),
    (
      {"stages": ("counts",)},
      "recommender.safetensors: no such file; .*: add recommender to --conf",
    ),
    ({"recommender.rows": -1}, "recommender.rows=-1"),
  ],
)
def test_what_cannot_be_held_out_is_refused_before_anything_is_written(
  tiny, tmp_path, changes, says
):
  with pytest.raises(UserError, match=says):
    start(tiny(changes=changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_another_run_is_refused_before_the_data_of_the_first_change(tiny, tmp_path):
  path = tmp_path / "run"
  with lock_folder(path / cold_start_run.WARM), pytest.raises(UserError, match="is training here"):
    start(tiny(), path)
  assert [file.name for file in (path / cold_start_run.WARM).iterdir()] == ["lock"]
  assert not (path / cold_start_run.SPLIT).exists()


def test_the_command_refuses_an_impossible_fraction_in_one_line(trained, tmp_path):
  line = refused(
    "cold_start",
    "--config=configs/beauty.py",
    f"--config.data.dir={trained / 'synthetic'}",
    f"--workdir={tmp_path}",
    "--fraction=0",
  )
  assert "--fraction=0.0: of 40 items" in line
