"""benchmarks/results_table.py as it is typed, on two runs of the smallest workdir."""

import json
import shutil

import numpy as np
import pytest
from commands import benchmark

from mmesid_jax.files.artifact import read_header

MODEL, OTHER = "MME-SID + evidence", "counts + content"


@pytest.fixture
def runs(blended, tmp_path):
  """Two runs that differ in the seed, and in the ranks of one model."""
  paths = [shutil.copytree(blended, tmp_path / name) for name in "ab"]
  evaluation = json.loads((paths[1] / "evaluation.json").read_text())
  evaluation["seed"] = evaluation["config"]["seed"] = 1
  (paths[1] / "evaluation.json").write_text(json.dumps(evaluation))
  file = paths[1] / "ranks" / f"test-{MODEL}.npy"
  np.save(file, np.load(file, allow_pickle=False)[:, ::-1] * 2)
  return paths


def run(*flags: str):
  return benchmark("results_table", *flags)


def test_means_and_differences_are_those_of_the_ranks(runs, tmp_path):
  file = tmp_path / "results.json"
  done = run(f"--workdirs={runs[0]},{runs[1]}", f"--file={file}")
  assert done.returncode == 0, done.stderr[-2000:]

  def gains(path, model):
    rank_U = np.load(path / "ranks" / f"test-{model}.npy", allow_pickle=False)[0]
    return np.where(rank_U <= 5, 1 / np.log2(rank_U + 1.0), 0)

  means = [gains(path, MODEL).mean() for path in runs]
  differences = [(gains(path, MODEL) - gains(path, OTHER)).mean() for path in runs]
  results = json.loads(file.read_text())
  assert results["seeds"] == [0, 1]
  assert results["models"][MODEL]["masked"]["nDCG@5"] == pytest.approx(means, abs=1e-6)
  mean, low, high = results["differences"][f"{MODEL} - {OTHER}"]["masked nDCG@5"]
  assert mean == pytest.approx(np.mean(differences), abs=1e-6) and low < mean < high
  (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"| masked | {MODEL} |")]
  assert f"{np.mean(means):.4f} ({means[0]:.4f}, {means[1]:.4f})" in row
  assert run(f"--file={file}").stdout == done.stdout  # from the file alone


def test_runs_that_differ_in_more_than_their_seed_are_refused(runs, tmp_path):
  evaluation = json.loads((runs[1] / "evaluation.json").read_text())
  evaluation["config"]["recommender.epochs"] += 1
  (runs[1] / "evaluation.json").write_text(json.dumps(evaluation))
  done = run(f"--workdirs={runs[0]},{runs[1]}", f"--file={tmp_path / 'results.json'}")
  assert done.returncode and f"{runs[1]}: differs from" in done.stderr
  assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_a_control_without_the_network_is_a_row_and_is_compared(runs, tmp_path):
  control, file = shutil.copytree(runs[1], tmp_path / "control"), tmp_path / "results.json"
  flags = f"--workdirs={runs[0]},{runs[1]}", f"--control={control}", f"--file={file}"
  refused = run(*flags)
  assert refused.returncode and "differs from" in refused.stderr and not file.exists()
  evaluation = json.loads((control / "evaluation.json").read_text())
  evaluation["config"]["blend.network"] = False
  (control / "evaluation.json").write_text(json.dumps(evaluation))
  assert run(*flags).returncode == 0
  results = json.loads(file.read_text())
  of_blend = results["models"][MODEL]["masked"]["nDCG@5"]
  name = "counts + content, reranked"
  assert results["models"][name]["masked"]["nDCG@5"] == [of_blend[1]] * 2
  mean = results["differences"][f"{MODEL} - {name}"]["masked nDCG@5"][0]
  assert mean == pytest.approx((of_blend[0] - of_blend[1]) / 2, abs=1e-6)


@pytest.mark.slow
def test_refits_are_rows_and_are_compared_with_each_other(runs, tmp_path):
  file = tmp_path / "results.json"
  flags = f"--workdirs={runs[0]},{runs[1]}", f"--file={file}", "--refitted"
  assert "no such file" in run(*flags).stderr and not file.exists()
  for path in runs:  # named as a refit names them
    refit = shutil.copytree(path, tmp_path / "copy")
    evaluation = json.loads((refit / "evaluation.json").read_text())
    evaluation["dataset"] = "with the validation items"
    models = evaluation["models"]
    evaluation["models"] = {f"{model}, refitted": found for model, found in models.items()}
    (refit / "evaluation.json").write_text(json.dumps(evaluation))
    for model in models:
      plain = refit / "ranks" / f"test-{model}.npy"
      plain.rename(plain.with_name(f"test-{model}, refitted.npy"))
    ranks = refit / "ranks" / f"test-{MODEL}, refitted.npy"
    np.save(ranks, np.ones_like(np.load(ranks, allow_pickle=False)))
    refit.rename(path / "refit")
  done = run(*flags)
  assert done.returncode == 0, done.stderr[-2000:]
  results = json.loads(file.read_text())
  assert results["models"][f"{MODEL}, refitted"]["masked"]["nDCG@5"] == [1, 1]
  plain = results["models"][OTHER]["masked"]
  assert results["models"][f"{OTHER}, refitted"]["masked"] == plain
  pair = f"{MODEL}, refitted - {OTHER}, refitted"
  mean = results["differences"][pair]["masked nDCG@5"][0]
  assert mean == pytest.approx(1 - np.mean(plain["nDCG@5"]), abs=1e-5)
  assert f"| masked | {MODEL}, refitted | 1.0000 |" in done.stdout


def test_the_metric_that_chose_is_kept_of_every_seed(runs, tmp_path):
  file = tmp_path / "results.json"
  assert run(f"--workdirs={runs[0]},{runs[1]}", f"--file={file}").returncode == 0
  header = read_header(runs[0] / "blend.safetensors", "blend")
  found = json.loads(file.read_text())["validation"]
  assert [*found] == ["evidence_alone", "summed", "valid"]
  for name, values in found.items():
    assert values == pytest.approx([header[name]] * 2, abs=1e-6)
