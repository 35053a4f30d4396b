"""Models whose training ended too early are named under the table of results."""

import os
import signal

import pytest

from mmesid_jax import pipeline
from mmesid_jax.errors import Interrupted
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.files import artifact
from mmesid_jax.reports import training_end
from mmesid_jax.reports.training_end import still_rises
from mmesid_jax.stages.workdir import reopen_workdir

MANY = 10**9  # users: no standard error to speak of


@pytest.mark.parametrize(
  ("values", "users", "rises"),
  [
    ([0.1, 0.2, 0.3, 0.4], MANY, True),
    ([0.3, 0.39, 0.395, 0.399], MANY, True),  # 2.3 % above two epochs before
    ([0.1, 0.39, 0.395, 0.397], MANY, False),  # 1.8 %
    ([0.4, 0.4, 0.4, 0.4], MANY, False),
    ([0.4, 0.3, 0.2, 0.1], MANY, False),
    ([0.1, 0.2, 0.4, 0.39], MANY, False),  # the best is not the last
    ([0.1, 0.2, 0.4, 0.4], MANY, False),
    ([0.4, 0.3, 0.2, 0.405], MANY, False),  # back from a dip
    ([0.1, 0.2], MANY, True),
    ([0.2, 0.1], MANY, False),
    ([0.2], MANY, False),
    ([], MANY, False),
    ([0.0, 0.0, 0.0], 10, False),
    ([0.40, 0.45, 0.50], 24, False),  # standard error 0.102
    ([0.40, 0.45, 0.50], 26, True),  # 0.098
  ],
)
def test_a_rise_is_above_the_noise(values, users, rises):
  assert still_rises(values, users) is rises


@pytest.fixture
def rising(tiny):
  """A configuration under which SASRec learns less than it could."""
  changes = {
    "stages": ("collaborative",),
    "data.synthetic.num_users": 400,
    "collaborative.epochs": 3,
    "collaborative.width": 16,
    "collaborative.dropout": 0.0,
    "collaborative.optimizer.learning_rate": 0.001,
  }
  return tiny(changes=changes)


def warnings(capsys) -> list[str]:
  return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_a_real_run_says_so_when_it_trains_resumes_repeats_and_lends(
  rising, tmp_path, capsys, monkeypatch
):
  metrics, calls = Evaluator.metrics, []

  def stop_at_the_second(*arguments):
    calls.append(1)
    if len(calls) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return metrics(*arguments)

  monkeypatch.setattr(Evaluator, "metrics", stop_at_the_second)
  with pytest.raises(Interrupted):
    pipeline.run_pipeline(rising, tmp_path / "run")
  assert not warnings(capsys)
  pipeline.run_pipeline(rising, tmp_path / "run")
  header = artifact.read_header(tmp_path / "run" / "collaborative.safetensors", "collaborative")
  first, _, last = header["valid_by_epoch"]
  assert header["valid"] == {"nDCG@10": last} and len(calls) == 3
  (line,) = warnings(capsys)
  assert line == (
    f"warning: collaborative: valid nDCG@10 of SASRec still rises: {last:.4f} in epoch 3 of 3, "
    f"the best, {first:.4f} 2 epochs before; the table is unfair to it until it trains longer: "
    "--config.collaborative.epochs=6 --overwrite"
  )
  pipeline.run_pipeline(rising, tmp_path / "run")
  assert warnings(capsys) == [line]
  pipeline.run_pipeline(rising, tmp_path / "other", others=[tmp_path / "run"])
  assert warnings(capsys) == [line]
  pipeline.report_ranks(reopen_workdir(tmp_path / "run"), "valid")
  assert warnings(capsys) == [line]
  assert len(calls) == 3  # nothing was trained again


def test_a_model_that_ends_flat_and_one_of_an_earlier_version_get_no_line(workdir, tmp_path):
  opened, path = reopen_workdir(workdir), workdir / "recommender.safetensors"
  tensors, header = artifact.read_artifact(path, "recommender")
  assert len(header["valid_by_epoch"]) == 2
  for values, lines in (([0.1, 0.5], 1), ([0.5, 0.1], 0), (None, 0)):
    header.pop("valid_by_epoch", None)
    more = {} if values is None else {"valid_by_epoch": values}
    artifact.write_artifact(path, tensors, header | more)
    found = [x for x in training_end.describe_unfinished(opened) if x.startswith("recommender: ")]
    assert len(found) == lines
