"""A refit: everything trains again on training and validation items, with what the run chose."""

import collections
import itertools
import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.config.schema import STAGES, TRAINED
from mmesid_jax.data.synthetic import write_synthetic
from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.files.artifact import read_artifact, read_header, write_artifact
from mmesid_jax.reports.id_report import examine_semantic_ids
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages import evidence_stages, semantic_id_stage, sequence_task
from mmesid_jax.stages.workdir import reopen_workdir
from mmesid_jax.training.optimizer import learning_rate_schedule

FEW = {  # options of the search; what the tests choose instead is not among them
  "window": (5,),
  "distance_decay": (0.5,),
  "recency": (0.6,),
  "tail": (0.0,),
  "tau": (1.0,),
  "popularity": (-0.04,),
  "trend": (0.0,),
  "repeats": (0.0,),
}
CHOSEN = {"window": 3, "distance_decay": 1.0, "tau": 0.7}
EPOCHS, BEST = 3, 2


def sequences(source: pathlib.Path) -> list[list[int]]:
  lines = (source / "sequences.txt").read_text().splitlines()
  return [[*map(int, line.split())] for line in lines]


def write_sequences(source: pathlib.Path, users: list[list[int]]) -> None:
  (source / "sequences.txt").write_text("".join(" ".join(map(str, u)) + "\n" for u in users))


def changed(source: pathlib.Path, to: pathlib.Path, change) -> pathlib.Path:
  """A copy of the data in which `change` has made another of each user's items."""
  shutil.copytree(source, to)
  write_sequences(to, [[user, *change(items)] for user, *items in sequences(source)])
  return to


def tensors_of(path: pathlib.Path, stage: str) -> dict[str, np.ndarray]:
  return read_artifact(path / f"{stage}.safetensors", stage)[0]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
  assert found.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def rewrite(path: pathlib.Path, stage: str, change) -> None:
  """Writes an artifact again, as `change` leaves its tensors and its header."""
  tensors, header = read_artifact(path / f"{stage}.safetensors", stage)
  change(tensors, header)
  write_artifact(path / f"{stage}.safetensors", tensors, header)


def choose(path: pathlib.Path) -> None:
  """Another choice in the artifacts of a run than validation would make."""
  for stage in ("counts", "content"):
    rewrite(path, stage, lambda tensors, header: header["settings"].update(CHOSEN))
  rewrite(path, "blend", lambda tensors, header: tensors.update(weights=np.float32([0.1, 0.7])))


@pytest.fixture(scope="module", autouse=True)
def quick():
  """A short search, and validation that finds everything best after BEST of EPOCHS epochs."""

  def best_in_the_middle(name: str):
    values = itertools.cycle([-abs(epoch - BEST) for epoch in range(1, EPOCHS + 1)])
    return lambda *arguments: {name: next(values)}

  evaluators = collections.defaultdict(lambda: best_in_the_middle("nDCG@10"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Evaluator, "metrics", lambda self, *arguments: evaluators[self]())
    patch.setattr(
      semantic_id_stage, "_validation", lambda *_: best_in_the_middle("negative_reconstruction")
    )
    patch.setattr(evidence_stages.CountsStage, "OPTIONS", FEW)
    patch.setattr(evidence_stages, "WIDTHS", (8,))
    patch.setattr(evidence_stages, "RECENCIES", (0.6,))
    patch.setattr(evidence_stages, "WEIGHTS", (1.0,))
    yield


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
  """60 users, of whom one has too few items to be evaluated."""
  path = tmp_path_factory.mktemp("refit") / "data"
  write_synthetic(path, users=60, items=40, clusters=4, seed=0)
  users = sequences(path)
  users[7] = users[7][:3]
  write_sequences(path, users)
  return path


@pytest.fixture(scope="module")
def config_of(tiny):
  def make(source: pathlib.Path, **changes):
    epochs = {f"{stage}.epochs": EPOCHS for stage in TRAINED}
    data = {"data.source": "files", "data.dir": str(source), "run.log_every": 1}
    return tiny(changes={"stages": STAGES, **data, **epochs, **changes})

  return make


@pytest.fixture(scope="module")
def run(config_of, tmp_path_factory):
  """run(source): a workdir with a run, another choice in its artifacts, and its refit; to be read
  only."""

  def make(source: pathlib.Path) -> pathlib.Path:
    path = tmp_path_factory.mktemp("refit") / "run"
    pipeline.run_pipeline(config_of(source), path)
    choose(path)
    pipeline.run_pipeline(config_of(source), path, refit=True)
    return path

  return make


@pytest.fixture(scope="module")
def refitted(run, source) -> pathlib.Path:
  return run(source)


@pytest.fixture
def copy(refitted, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(refitted, tmp_path / "copy"))


def test_it_is_the_first_run_on_data_with_one_more_item(
  refitted, source, config_of, tmp_path_factory
):
  """Then the validation items are training items: of that run, the parameters after the epoch that
  validation finds best are those of the refit, to the last bit."""
  path = tmp_path_factory.mktemp("longer")
  longer = changed(source, path / "data", lambda items: items + [1] * (len(items) > 2))
  pipeline.run_pipeline(config_of(longer, stages=TRAINED), path / "run")
  for stage in TRAINED:
    assert_same(tensors_of(refitted / "refit", stage), tensors_of(path / "run", stage))
  first = tensors_of(refitted, "collaborative")["items"]
  assert np.abs(first - tensors_of(refitted / "refit", "collaborative")["items"]).max() > 1e-3


def test_the_test_items_never_train(refitted, source, run, tmp_path):
  """With other test items every tensor and every choice is the same."""
  other = changed(
    source,
    tmp_path / "data",
    lambda items: items[:-1] + [items[-1] % 40 + 1] if len(items) > 2 else items,
  )
  path = run(other) / "refit"
  depends_on_all_data = ("fingerprint", "dataset", "upstream", "config")
  for stage in STAGES:
    assert_same(tensors_of(path, stage), tensors_of(refitted / "refit", stage))
    headers = [
      read_header(folder / f"{stage}.safetensors", stage) for folder in (path, refitted / "refit")
    ]
    for name in depends_on_all_data:
      assert [header.pop(name, None) for header in headers].count(None) != 1
    assert headers[0] == headers[1]
  assert (path / "chosen.json").read_bytes() == (refitted / "refit" / "chosen.json").read_bytes()


@pytest.mark.parametrize("stage", ["collaborative", "recommender"])
def test_networks_train_for_the_best_number_of_epochs_of_the_schedule(refitted, config_of, stage):
  steps, rates = {}, {}
  for path in (refitted, refitted / "refit"):
    lines = (path / stage / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    rates[path] = {x["step"]: x["learning_rate"] for x in found if "learning_rate" in x}
    steps[path] = max(rates[path])
    header = read_header(path / f"{stage}.safetensors", stage)
    assert header["best_epoch"] == BEST
    assert ("valid" in header) == ("valid_by_epoch" in header) == (path == refitted)
    assert any("valid/nDCG@10" in line for line in found) == (path == refitted)
  first, again = steps.values()
  an_epoch = again // BEST
  assert (first % EPOCHS, again % BEST) == (0, 0)
  assert first // EPOCHS <= an_epoch < 2 * first // EPOCHS  # a few more items
  config = config_of(refitted)[stage]
  schedule = learning_rate_schedule(config.optimizer, EPOCHS * an_epoch)
  assert rates[refitted / "refit"] == {n: float(schedule(n - 1)) for n in range(1, again + 1)}


@pytest.mark.parametrize("stage", ["counts", "content"])
def test_counts_are_of_training_and_validation_items_with_the_settings_chosen(
  refitted, source, stage
):
  tensors, header = read_artifact(refitted / "refit" / f"{stage}.safetensors", stage)
  assert CHOSEN.items() <= header["settings"].items() and "tried" not in header
  assert header["settings"] == read_header(refitted / f"{stage}.safetensors", stage)["settings"]
  expected, met = np.zeros((41, 41)), np.ones(41)
  for _, *items in sequences(source):
    trained = items[:-1] if len(items) > 2 else items
    np.add.at(met, trained, 1)
    for place, item in enumerate(trained):
      for distance, later in enumerate(trained[place + 1 : place + 1 + CHOSEN["window"]], 1):
        expected[item, later] += 1 / distance
  counted = np.zeros((41, 41))
  np.add.at(counted, (np.arange(41)[:, None], tensors["follower"]), tensors["count"])
  np.testing.assert_allclose(counted, expected, rtol=1e-5)
  np.testing.assert_allclose(tensors["share"][1:], met[1:] / met[1:].sum(), rtol=1e-5)


def test_the_blend_keeps_its_weights_beside_the_new_evidence(refitted):
  blend, content = (tensors_of(refitted / "refit", stage) for stage in ("blend", "content"))
  first = tensors_of(refitted, "blend")
  weighting = {"amounts", "shares", "weights", "newness"}
  assert_same({name: blend.pop(name) for name in weighting}, {n: first[n] for n in weighting})
  assert_same(blend, content)


def test_its_rows_stand_on_their_own(copy, config_of, source, capsys):
  pipeline.run_pipeline(config_of(source), copy, refit=True)
  out = capsys.readouterr().out
  assert out.count("up to date") == 2 * len(STAGES)
  above, below = out.split("refitted = trained on validation items, too")
  assert "MME-SID + evidence  " in above and ", refitted" not in above
  found, again = (
    json.loads((path / "evaluation.json").read_text()) for path in (copy, copy / "refit")
  )
  assert [f"{name}, refitted" for name in found["models"]] == [*again["models"]]
  assert found["users"] == again["users"] == 59
  for name, protocols in again["models"].items():
    assert below.count(f" {name} ") == 2 and [*protocols] == ["masked", "unmasked"]
    assert protocols != found["models"][name.removesuffix(", refitted")]


def test_the_first_run_stays_as_it_was(copy, config_of, source):
  shutil.rmtree(copy / "refit")
  before = {
    file: (file.stat().st_mtime_ns, file.read_bytes())
    for file in (*copy.glob("*.safetensors"), *copy.glob("*/metrics.jsonl"))
  }
  pipeline.run_pipeline(config_of(source, stages=("counts",)), copy, refit=True)
  assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in before} == before
  assert [f.name for f in (copy / "refit").glob("*.safetensors")] == ["counts.safetensors"]


def test_a_stopped_refit_ends_as_one_that_was_not(copy, refitted, config_of, source, monkeypatch):
  for stage in ("recommender", "blend"):
    (copy / "refit" / f"{stage}.safetensors").unlink()
    shutil.rmtree(copy / "refit" / stage)
  useful_work, calls = sequence_task.useful_work, []

  def stop_at_the_third(*arguments):
    calls.append(1)
    if len(calls) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return useful_work(*arguments)

  monkeypatch.setattr(sequence_task, "useful_work", stop_at_the_third)
  with pytest.raises(Interrupted, match="refit/recommender; run the same command again"):
    pipeline.run_pipeline(config_of(source), copy, refit=True)
  monkeypatch.undo()
  before = (copy / "refit" / "collaborative.safetensors").stat().st_mtime_ns
  pipeline.run_pipeline(config_of(source), copy, refit=True)
  assert (copy / "refit" / "collaborative.safetensors").stat().st_mtime_ns == before
  for stage in ("recommender", "blend"):
    assert_same(tensors_of(copy / "refit", stage), tensors_of(refitted / "refit", stage))


def test_its_folder_is_a_workdir(copy, capsys):
  """It is evaluated, served and examined as any other, wherever it is."""
  path = pathlib.Path(shutil.copytree(copy / "refit", copy.parent / "elsewhere"))
  before = json.loads((path / "evaluation.json").read_text())
  pipeline.report_ranks(reopen_workdir(path), "test")
  assert json.loads((path / "evaluation.json").read_text()) == before
  (answer,) = Recommender.load(path).recommend([[1, 2, 3]], top_k=3)
  assert len(answer) == 3 and "transitions" in answer[0].parts
  assert examine_semantic_ids(reopen_workdir(path))["notes"] == []
  with pytest.raises(UserError, match="no user has a valid target; .* trains on the validation"):
    pipeline.report_ranks(reopen_workdir(path), "valid")


def test_another_choice_of_the_run_makes_its_refit_stale(copy, config_of, source):
  rewrite(copy, "content", lambda tensors, header: header["settings"].update(tau=0.9))
  with pytest.raises(UserError, match=r"refit: the stage content was made from .* --overwrite"):
    pipeline.run_pipeline(config_of(source), copy, refit=True)
  before = {f: f.stat().st_mtime_ns for f in copy.rglob("*.safetensors")}
  pipeline.run_pipeline(config_of(source), copy, refit=True, overwrite=True)
  redone = {f for f in before if f.stat().st_mtime_ns != before[f]}
  assert redone == {copy / "refit" / f"{stage}.safetensors" for stage in ("content", "blend")}


def test_what_would_stop_it_in_the_end_is_refused_at_the_start(copy, config_of, source):
  config = config_of(source)
  for file in (*copy.glob("*.safetensors"), *copy.glob("refit/*.safetensors")):
    if "recommender" in file.name:
      file.unlink()  # nothing of this is trained
  with pytest.raises(UserError, match="refit is a refit itself; name the workdir of the first"):
    pipeline.run_pipeline(config, copy / "refit", refit=True)
  (copy / "refit" / "semantic_ids.safetensors").unlink()
  only = config_of(source, stages=("recommender",))
  with pytest.raises(UserError, match="refit/semantic_ids.safetensors: no such file; .* needs it"):
    pipeline.run_pipeline(only, copy, refit=True)
  saved = json.loads((copy / "refit" / "config.json").read_text())
  saved["recommender"]["width"] = 16
  (copy / "refit" / "config.json").write_text(json.dumps(saved))
  with pytest.raises(UserError, match="refit: holds another experiment"):
    pipeline.run_pipeline(config, copy, refit=True)
  shutil.rmtree(copy / "refit")
  (copy / "refit").write_text("mine")
  with pytest.raises(UserError, match="refit: is a file, where a refit has its folder"):
    pipeline.run_pipeline(config, copy, refit=True)
  assert (copy / "refit").read_text() == "mine"
  assert not (copy / "recommender.safetensors").exists()


def test_an_artifact_of_an_earlier_version_is_refused(copy, config_of, source):
  rewrite(copy, "collaborative", lambda tensors, header: header.pop("best_epoch"))
  with pytest.raises(UserError, match="collaborative.safetensors: of an earlier version"):
    pipeline.run_pipeline(config_of(source), copy, refit=True)


def test_an_earlier_artifact_of_a_stage_that_does_not_run_is_refused_at_the_start(
  copy, config_of, source
):
  rewrite(copy, "collaborative", lambda tensors, header: header.pop("best_epoch"))
  (copy / "counts.safetensors").unlink()
  with pytest.raises(UserError, match="collaborative.safetensors: of an earlier version"):
    pipeline.run_pipeline(config_of(source, stages=("counts",)), copy, refit=True)
  assert not (copy / "counts.safetensors").exists()


def test_a_refit_without_the_choice_for_a_stage_is_refused(copy, config_of, source):
  chosen = json.loads((copy / "refit" / "chosen.json").read_text())
  del chosen["counts"]
  (copy / "refit" / "chosen.json").write_text(json.dumps(chosen))
  with pytest.raises(UserError, match="does not say what the first run chose for the stage counts"):
    pipeline.run_pipeline(config_of(source), copy / "refit")
