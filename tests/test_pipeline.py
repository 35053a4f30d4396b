"""All stages at toy size: what is written, what is done again, what is refused."""

import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy

from mmesid_jax import pipeline
from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.files.lock import lock_folder
from mmesid_jax.stages import semantic_id_stage
from mmesid_jax.stages.registry import STAGES as STAGES_BY_NAME
from mmesid_jax.stages.workdir import open_workdir, reopen_workdir

STAGES = ("collaborative", "semantic_ids", "recommender")


def artifacts(path: pathlib.Path) -> dict[str, int]:
  """Every artifact, finished or not, and when it was written."""
  found = [*path.rglob("*.safetensors"), *path.rglob("*.tmp")]
  return {file.name: file.stat().st_mtime_ns for file in found}


def test_every_stage_leaves_an_artifact_that_says_what_it_is(trained):
  for stage in STAGES:
    tensors, header = read_artifact(trained / f"{stage}.safetensors", stage)
    assert (header["stage"], header["num_items"]) == (stage, 40)
    assert {name: list(tensors[name].shape) for name in header["shapes"]} == header["shapes"]
  codes = read_artifact(trained / "semantic_ids.safetensors", "semantic_ids")[0]
  assert codes["codes.text"].shape == (41, 2) and not codes["codes.text"][0].any()
  assert codes["codebooks.text"].shape == (2, 4, 8)
  assert not read_artifact(trained / "collaborative.safetensors", "collaborative")[0]["items"][
    0
  ].any()


def test_the_evaluation_holds_every_model_in_both_protocols(trained):
  found = json.loads((trained / "evaluation.json").read_text())
  assert list(found["models"]) == ["popularity", "SASRec", "MME-SID"] and found["users"] == 60
  for protocols in found["models"].values():
    assert list(protocols) == ["masked", "unmasked"]
    for metrics in protocols.values():
      coverage = [metrics.pop(f"coverage@{k}") for k in (5, 10, 20)]
      assert 0 < coverage[0]["mean"] <= coverage[1]["mean"] <= coverage[2]["mean"] <= 1
      names = ("HR", "nDCG", "MRR", "MAP")
      assert {f"{m}@{k}" for m in names for k in (5, 10, 20)} == metrics.keys()
      assert all(0 <= v["low"] <= v["mean"] <= v["high"] <= 1 for v in metrics.values())


def test_config_and_environment_are_written_down(trained, tiny):
  environment = json.loads((trained / "environment.json").read_text())
  assert {"versions", "python", "devices", "git"} <= environment.keys()
  assert json.loads((trained / "config.json").read_text())["recommender"]["width"] == 8


def test_others_may_read_every_file_as_the_umask_says(trained):
  os.umask(umask := os.umask(0))
  found = {f: f.stat().st_mode & 0o777 for f in trained.rglob("*") if f.is_file()}
  assert {str(f): mode for f, mode in found.items() if mode != 0o666 & ~umask} == {}


def test_a_second_run_trains_nothing(workdir, tiny, capsys):
  before = artifacts(workdir)
  config = tiny(changes={"run.log_every": 3})  # how it runs may differ
  pipeline.run_pipeline(config, workdir)
  assert capsys.readouterr().out.count("up to date") == 3
  assert artifacts(workdir) == before


def test_another_experiment_is_refused_by_what_differs(workdir, tiny):
  before = artifacts(workdir)
  with pytest.raises(UserError) as caught:
    pipeline.run_pipeline(tiny(changes={"recommender.mlp_width": 24}), workdir)
  message = str(caught.value)
  assert "recommender.mlp_width was 16, now 24" in message and "--overwrite" in message
  assert artifacts(workdir) == before


def test_a_workdir_in_training_is_read_and_not_trained_in(workdir, tiny):
  with lock_folder(workdir):
    with pytest.raises(UserError, match="is training here"):
      pipeline.run_pipeline(tiny(), workdir)
    pipeline.report_ranks(reopen_workdir(workdir), "valid")
  pipeline.run_pipeline(tiny(), workdir)


@pytest.mark.parametrize(
  ("change", "redone"),
  [
    ({"recommender.mlp_width": 24}, {"recommender.safetensors"}),
    (
      {"semantic_ids.quantizer.commitment": 0.5},
      {"recommender.safetensors", "semantic_ids.safetensors"},
    ),
    ({"evaluation.resamples": 5}, set()),
  ],
)
def test_overwrite_redoes_what_the_change_concerns(workdir, tiny, change, redone):
  before = artifacts(workdir)
  pipeline.run_pipeline(tiny(changes=change), workdir, overwrite=True)
  after = artifacts(workdir)
  assert {name for name in after if after[name] != before[name]} == redone


def test_no_process_is_in_the_workdir_while_it_changes(workdir, tiny, monkeypatch):
  """All have looked before the first one removes anything, and none goes on before it is done."""
  artifact, config_file = workdir / "recommender.safetensors", workdir / "config.json"
  before, seen = config_file.read_text(), []

  def note(label):
    seen.append((label, artifact.exists(), config_file.read_text() == before))

  monkeypatch.setattr(pipeline.processes, "barrier", note)
  config = tiny(changes={"recommender.epochs": 3})
  pipeline._open(config, workdir, list(STAGES_BY_NAME.values()), overwrite=True)
  assert seen == [("look through the workdir", True, True), ("remove what is stale", False, False)]


def test_an_artifact_is_taken_with_the_folders_beside_it(workdir, tmp_path):
  """The adapter of a recommender with LoRA is part of it."""
  ours = pathlib.Path(shutil.copytree(workdir, tmp_path / "ours"))
  (ours / "recommender.safetensors").unlink()
  (workdir / "adapter").mkdir()
  (workdir / "adapter" / "adapter_config.json").write_text("{}")
  stage = STAGES_BY_NAME["recommender"]
  assert pipeline._taken(reopen_workdir(ours), stage, [workdir]) == workdir
  assert (ours / "adapter" / "adapter_config.json").read_text() == "{}"
  taken, source = (path / "recommender.safetensors" for path in (ours, workdir))
  assert taken.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("file", ["text.npy", "sequences.txt"])
def test_other_data_under_the_same_configuration_is_refused(workdir, tiny, tmp_path, file):
  source = pathlib.Path(shutil.copytree(workdir / "synthetic", tmp_path / "data"))
  config = tiny(changes={"data.source": "files", "data.dir": str(source)})
  pipeline.run_pipeline(
    config, workdir, overwrite=True
  )  # adopt the folder: the same data, nothing stale
  if file == "text.npy":
    np.save(source / file, np.load(source / file) + 1)
  else:
    lines = (source / file).read_text().splitlines()
    (source / file).write_text("\n".join(lines[:-1]) + "\n")
  with pytest.raises(
    UserError,
    match="made from other data or features.* --overwrite redoes it",
  ):
    pipeline.run_pipeline(config, workdir)


def truncate(workdir):
  file = workdir / "collaborative.safetensors"
  file.write_bytes(file.read_bytes()[:-100])


def swap(workdir):
  shutil.copy(workdir / "semantic_ids.safetensors", workdir / "collaborative.safetensors")


def foreign(workdir):
  safetensors.numpy.save_file({"x": np.zeros(3)}, workdir / "collaborative.safetensors")


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (truncate, "not a whole safetensors file"),
    (swap, "not an artifact of the stage collaborative (found: semantic_ids)"),
    (foreign, "not an artifact of the stage collaborative (found: no mmesid header)"),
  ],
)
def test_a_damaged_or_foreign_artifact_is_named(workdir, tiny, damage, says):
  damage(workdir)
  with pytest.raises(UserError) as caught:
    pipeline.run_pipeline(tiny(), workdir)
  message = str(caught.value)
  assert says in message and str(workdir / "collaborative.safetensors") in message
  assert "run mmesid_jax.train with the stage collaborative" in message


def test_a_stage_without_its_upstream_is_refused(tiny, tmp_path):
  with pytest.raises(UserError, match="add collaborative to --config.stages"):
    pipeline.run_pipeline(tiny(changes={"stages": ("recommender",)}), tmp_path)
  assert not artifacts(tmp_path)


def table(rows=41, width=6, dtype=np.float32):
  return np.random.default_rng(0).normal(size=(rows, width)).astype(dtype)


BAD_TABLES = {
  "wrong rows": (table(rows=40), "40 rows; expected 41"),
  "not a number": (np.where(np.arange(41)[:, None] == 7, np.nan, table()), "row 7 holds NaN"),
  "objects": (table().astype(object), "python objects"),
  "flat": (table()[:, 0], "a table of shape [41]"),
  "missing": (None, "no such file"),
  "all zero": (np.zeros((41, 8)), "all 40 items have the same row"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_feature_table_that_does_not_fit_stops_before_anything_trains(
  trained, tiny, tmp_path, kind
):
  x, says = BAD_TABLES[kind]
  source = pathlib.Path(shutil.copytree(trained / "synthetic", tmp_path / "data"))
  (source / "text.npy").unlink()
  if x is not None:
    np.save(source / "text.npy", x, allow_pickle=True)
  config = tiny(changes={"data.source": "files", "data.dir": str(source)})
  with pytest.raises(UserError) as caught:
    pipeline.run_pipeline(config, tmp_path / "run")
  assert str(source / "text.npy") in str(caught.value) and says in str(caught.value)
  assert not artifacts(tmp_path / "run")


def test_a_stopped_recommender_ends_as_one_that_was_not(workdir, trained, tiny, monkeypatch):
  """SIGTERM in the middle of a real stage, with its packed batches and its dropout."""
  (workdir / "recommender.safetensors").unlink()
  shutil.rmtree(workdir / "recommender")
  metrics = Evaluator.metrics

  def stop(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return metrics(*arguments)

  monkeypatch.setattr(Evaluator, "metrics", stop)
  with pytest.raises(Interrupted, match="recommender: SIGTERM|SIGTERM at step"):
    pipeline.run_pipeline(tiny(), workdir)
  assert "recommender.safetensors" not in artifacts(workdir)
  monkeypatch.undo()
  pipeline.run_pipeline(tiny(), workdir)
  resumed, whole = (
    read_artifact(path / "recommender.safetensors", "recommender")[0] for path in (workdir, trained)
  )
  assert resumed.keys() == whole.keys()
  for name in whole:
    np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)


@pytest.mark.parametrize(
  ("every", "minutes", "keep", "kept"),
  [(1, 0.0, 3, 3), (1, 0.0, 1, 1), (999, 1e-9, 3, 3), (999, 0.0, 3, 1), (999, 999.0, 3, 1)],
)
def test_checkpoints_by_steps_or_by_minutes_are_kept_as_asked(
  trained, tiny, tmp_path, every, minutes, keep, kept
):
  for name in ("synthetic", "dataset"):
    shutil.copytree(trained / name, tmp_path / name)
  run = {"run.save_every": every, "run.save_minutes": minutes, "run.keep": keep}
  changes = {**run, "stages": ("collaborative",), "collaborative.epochs": 2}
  pipeline.run_pipeline(tiny(changes=changes), tmp_path)
  steps = sorted(int(file.name) for file in (tmp_path / "collaborative" / "steps").iterdir())
  assert steps == [*range(steps[-1] - kept + 1, steps[-1] + 1)]


VARIANTS = {
  "paper": ("paper", {}),
  "released_code": ("released_code", {}),
  "untied, summed, random codes": (
    "best",
    {"recommender.encoder": "untied", "recommender.fusion": "sum", "recommender.codes": "random"},
  ),
  "mmd, random start": (
    "best",
    {
      "semantic_ids.reconstruction": "mmd",
      "semantic_ids.alignment": "mmd",
      "semantic_ids.quantizer.start": "random",
      "semantic_ids.quantizer.sinkhorn_epsilon": 0.0,
      "semantic_ids.quantizer.learning": "gradient",
    },
  ),
  "residual k-means": ("best", {"semantic_ids.quantizer.kind": "kmeans"}),
  "grid": ("best", {"semantic_ids.quantizer.kind": "fsq", "semantic_ids.standardize": False}),
  "bce, no alignment, unmasked": (
    "best",
    {
      "collaborative.loss": "bce",
      "semantic_ids.alignment": "none",
      "semantic_ids.reconstruction": "mse",
      "semantic_ids.quantizer.start": "plain",
      "evaluation.select": "unmasked/nDCG@10",
    },
  ),
}


QUICK = ("paper", "grid", "bce, no alignment, unmasked")  # the others under the mark `slow`


@pytest.mark.parametrize(
  "name", [pytest.param(v, marks=[pytest.mark.slow] * (v not in QUICK)) for v in VARIANTS]
)
def test_every_choice_runs(tiny, tmp_path, name):
  preset, changes = VARIANTS[name]
  quick = {f"{stage}.epochs": 1 for stage in STAGES}
  pipeline.run_pipeline(tiny(preset, {**quick, **changes}), tmp_path)
  assert {f"{stage}.safetensors" for stage in STAGES} == artifacts(tmp_path).keys()


def test_own_vectors_and_no_codes_need_only_the_recommender(trained, tiny, tmp_path):
  source = pathlib.Path(shutil.copytree(trained / "synthetic", tmp_path / "data"))
  np.save(source / "own.npy", table())
  changes = {
    "data.source": "files",
    "data.dir": str(source),
    "features.collaborative": "own.npy",
    "recommender.codes": "none",
    "recommender.whiten": 4,
    "stages": ("recommender",),
  }
  pipeline.run_pipeline(tiny(changes=changes), tmp_path / "run")
  assert artifacts(tmp_path / "run").keys() == {"recommender.safetensors"}
  found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
  assert list(found["models"]) == ["popularity", "MME-SID"]


@pytest.fixture
def no_compilation_cache(monkeypatch, tmp_path):
  """No folder is chosen yet, and the user's folders are in tmp_path."""
  option, before = "jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
  jax.config.update(option, None)
  yield tmp_path / "caches" / "mmesid_jax" / "compiled"
  jax.config.update(option, before)


@pytest.mark.parametrize(
  ("asked", "of_the_user", "kept"),
  [(True, None, "caches/mmesid_jax/compiled"), (False, None, None), (True, "else", "else")],
)
def test_compiled_steps_are_kept_by_the_user_unless_told_otherwise(
  tiny, tmp_path, no_compilation_cache, asked, of_the_user, kept
):
  jax.config.update("jax_compilation_cache_dir", of_the_user and str(tmp_path / of_the_user))
  open_workdir(tiny(changes={"run.compilation_cache": asked}), tmp_path / "run")
  assert jax.config.jax_compilation_cache_dir == (kept and str(tmp_path / kept))
  assert not (tmp_path / "run" / "compiled").exists()


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_compiled_steps_are_not_read_where_others_may_write(
  tiny, tmp_path, no_compilation_cache, mode
):
  no_compilation_cache.mkdir(parents=True)
  no_compilation_cache.chmod(mode)
  open_workdir(tiny(), tmp_path / "run")
  assert jax.config.jax_compilation_cache_dir is None


def test_a_softmax_by_chunks_trains_the_same_model(workdir, trained, tiny):
  pipeline.run_pipeline(tiny(changes={"recommender.softmax_chunk": 7}), workdir, overwrite=True)
  found, expected = (
    read_artifact(path / "recommender.safetensors", "recommender")[0] for path in (workdir, trained)
  )
  name = "model.items.identity_ID"
  np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_sampled_softmax_microbatches_and_several_steps_at_once(workdir, trained, tiny):
  changes = {
    "recommender.negatives": 8,
    "recommender.microbatches": 2,
    "run.steps_at_once.recommender": 3,
  }
  pipeline.run_pipeline(tiny(changes=changes), workdir, overwrite=True)
  lines = (workdir / "recommender" / "metrics.jsonl").read_text().splitlines()
  before = (trained / "recommender" / "metrics.jsonl").read_text().splitlines()
  last, whole = (max(json.loads(line)["step"] for line in x) for x in (lines, before))
  assert last == 2 * -(-(whole // 2) // 2)  # two epochs of half as many steps
  name = "model.items.identity_ID"
  found, expected = (
    read_artifact(path / "recommender.safetensors", "recommender")[0][name]
    for path in (workdir, trained)
  )
  assert np.isfinite(found).all() and np.abs(found - expected).max() > 1e-4


def test_average_rate_decides_how_fast_codebooks_move(tiny, tmp_path):
  """Nothing else moves them in the stage: of a rate near 0 they stay as they start."""
  books = {}
  for rate in (1e-9, 0.5):
    changes = {"semantic_ids.quantizer.average_rate": rate, "stages": ("semantic_ids",)}
    config = tiny("best", {**changes, "features.collaborative": ""})
    workdir = open_workdir(config, tmp_path / str(rate))
    start = semantic_id_stage.init_tables(
      config.semantic_ids, workdir.features(), code_width=config.recommender.width, seed=config.seed
    )
    semantic_id_stage.SEMANTIC_IDS.train(workdir)
    found = semantic_id_stage.read_semantic_ids(workdir).codebooks
    books[rate] = [
      np.abs(found[m] - part.quantizer.codebook_LCD[...]).max()
      for m, part in start.model.by_modality.items()
    ]
  assert max(books[1e-9]) < 1e-6 and min(books[0.5]) > 1e-2
