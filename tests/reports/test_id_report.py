"""evaluate --stage=semantic_ids: what it finds in a trained workdir, and what it says without."""

import dataclasses
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.geometry import effective_rank, kendall_tau, spectrum
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.reports import id_report
from mmesid_jax.stages import recommender_stage, semantic_id_stage
from mmesid_jax.stages.workdir import reopen_workdir


def files(path) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in path.glob("*.safetensors")}


@pytest.fixture(scope="module")
def examined(trained, tmp_path_factory):
  """A copy of the trained workdir, and what was found in it."""
  path = shutil.copytree(trained, tmp_path_factory.mktemp("examined") / "run")
  return reopen_workdir(path), id_report.examine_semantic_ids(reopen_workdir(path))


def test_nothing_is_trained_and_both_files_are_written(examined, trained):
  workdir, found = examined
  assert files(workdir.path) == files(trained)
  assert json.loads((workdir.path / "semantic_ids.json").read_text()) == found
  text = (workdir.path / "semantic_ids.html").read_text()
  assert "collaborative" in text and "text" in text
  assert text.count("data:image/png") == 2 * 3 + 2
  assert found["notes"] == []


def test_health_is_that_of_the_artifact(examined):
  """The header holds the same figures; categories of the synthetic items are their products."""
  workdir, found = examined
  ids = semantic_id_stage.read_semantic_ids(workdir)
  assert found["health"] == ids.header["health"]
  assert len(ids.header["health"]["text"]["purity"]) == 2
  kinds = [title.split(" no. ")[0].split(" ", 1)[1] for title in workdir.dataset.titles()[1:]]
  largest = max(kinds.count(kind) for kind in kinds) / len(kinds)
  assert found["health"]["text"]["largest_category"] == pytest.approx(largest)
  assert len(json.dumps(ids.header["health"])) < 5_000  # no histograms in there
  logged = (workdir.path / "semantic_ids" / "metrics.jsonl").read_text().splitlines()
  dead = [
    m["valid/text/level2/dead"] for m in map(json.loads, logged) if "valid/text/level2/dead" in m
  ]
  assert len(dead) == 2 and all(0 <= n < 4 for n in dead)  # of two epochs
  for m, counts in found["count_LC"].items():
    assert [sum(level) for level in counts] == [40, 40], m
    dead = [level["dead"] for level in found["health"][m]["levels"]]
    assert [level.count(0) for level in counts] == dead


def test_residuals_are_those_of_the_quantiser(examined):
  workdir, found = examined
  features = workdir.features()
  model, _, _ = semantic_id_stage.load_mm_rqvae(workdir.path, workdir.config)
  for m, part in model.by_modality.items():
    z_BD = part.encode(jnp.asarray(features[m][1:]))
    left = jnp.linalg.norm(part.quantizer(z_BD).residual_BD, axis=1)
    expected = (left / jnp.linalg.norm(z_BD, axis=1)).mean()
    assert found["residual_norm"][m][-1] == pytest.approx(float(expected), rel=1e-4)
    assert len(found["residual_norm"][m]) == 3


def test_tau_and_rank_are_those_of_the_two_models(examined):
  workdir, found = examined
  features, items = workdir.features(), jnp.arange(41)
  models = {
    "before": recommender_stage.init_model(workdir),
    "after": recommender_stage.load_recommender(workdir.path, workdir.config),
  }
  for when, model in models.items():
    for m in features:
      vectors = np.asarray(model.items.code_vectors(m, items))
      expected = kendall_tau(features[m], vectors, workdir.dataset)
      # sums of code vectors in another order: a near tie may fall either way
      assert found["tau"][m][when] == pytest.approx(expected._asdict(), abs=1e-3), (m, when)
    token = np.asarray(model.items(items))[1:]
    one = found["inputs"][when]["item token"]
    assert one["effective_rank"] == pytest.approx(effective_rank(spectrum(token)), rel=1e-4)
    assert one["width"] == 8
    parts = [np.asarray(model.items.feature_vectors(m, items)) for m in features]
    both = sum(parts + [np.asarray(model.items.code_vectors(m, items)) for m in features])[1:]
    one = found["inputs"][when]["projected and codes"]
    assert one["spectrum"] == pytest.approx(spectrum(both).tolist(), rel=1e-2, abs=1e-4)
    names = ["item token", "collaborative projected", "text projected"]
    names += ["all projected", "all codes", "projected and codes"]
    assert list(found["inputs"][when]) == names
  # codes start as the quantiser left them, but for a shift and a scale, and then move
  for taus in found["tau"].values():
    assert taus["quantized"]["mean"] == pytest.approx(taus["before"]["mean"], abs=1e-3)
  assert found["inputs"]["before"] != found["inputs"]["after"]


def test_the_command_prints_both_tables(workdir, capsys):
  pipeline.report_semantic_ids(reopen_workdir(workdir))
  out = capsys.readouterr().out
  assert re.search(r"^collaborative +1 ", out, re.M) and re.search(r"^joint ", out, re.M)
  assert "tau to the original" in out and "effective rank" in out
  assert out.startswith("Are the codes in use? ") and "\nDo distances survive? " in out
  assert str(workdir / "semantic_ids.html") in out


def test_without_a_recommender_there_is_no_after_and_that_is_said(workdir, capsys):
  (workdir / "recommender.safetensors").unlink()
  pipeline.report_semantic_ids(reopen_workdir(workdir))
  assert "No figures after training: recommender.safetensors does not exist." in (
    capsys.readouterr().out
  )
  found = json.loads((workdir / "semantic_ids.json").read_text())
  assert list(found["inputs"]) == ["before"]
  assert list(found["tau"]["text"]) == ["quantized", "before"]
  assert "does not exist" in (workdir / "semantic_ids.html").read_text()


def rewrite(workdir, stage, change):
  path = workdir / f"{stage}.safetensors"
  tensors, header = read_artifact(path, stage)
  tensors = dict(tensors)
  change(tensors, header)
  write_artifact(path, tensors, header)


def test_a_recommender_of_other_ids_is_left_out(workdir):
  rewrite(workdir, "recommender", lambda tensors, header: header.update(fingerprint="other"))
  found = id_report.examine_semantic_ids(reopen_workdir(workdir))
  assert found["notes"] == [
    "No figures after training: recommender.safetensors was trained on other IDs or settings."
  ]
  assert list(found["inputs"]) == ["before"]


def test_a_recommender_without_codes_has_no_tau_of_its_own(workdir):
  (workdir / "recommender.safetensors").unlink()
  opened = reopen_workdir(workdir)
  opened.config.recommender.codes = "none"
  found = id_report.examine_semantic_ids(opened)
  assert [list(taus) for taus in found["tau"].values()] == [["quantized"], ["quantized"]]
  assert "all codes" not in found["inputs"]["before"]


def test_the_papers_encoder_reads_its_parts_side_by_side(workdir):
  (workdir / "recommender.safetensors").unlink()
  opened = reopen_workdir(workdir)
  opened.config.recommender.encoder = "mlp"
  parts = id_report.examine_semantic_ids(opened)["inputs"]["before"]
  assert parts["item token"]["width"] == parts["text projected"]["width"] == 8
  assert parts["all codes"]["width"] == 16
  assert parts["projected and codes"]["width"] == 32


def test_users_without_two_items_before_the_last_leave_tau_out(workdir):
  opened = reopen_workdir(workdir)
  nobody = dataclasses.replace(opened.dataset, offsets=np.zeros_like(opened.dataset.offsets))
  opened = dataclasses.replace(opened, dataset=nobody)
  features = {"text": np.zeros((41, 2), np.float32)}
  notes: list[str] = []
  assert id_report._measure_taus(opened, features, features, {}, notes) == {"text": {}}
  assert len(notes) == 1 and notes[0].startswith("No Kendall's tau")


def test_a_large_catalogue_is_sampled_and_that_is_said(workdir, monkeypatch):
  monkeypatch.setattr(id_report, "SPECTRUM_ITEMS", 7)
  monkeypatch.setattr(id_report, "CHUNK", 3)
  notes: list[str] = []
  items = recommender_stage.init_model(reopen_workdir(workdir)).items
  for _ in range(2):
    parts = id_report._measure_spectra(items, notes)
  assert notes == ["Spectra: of 7 items, sampled at random."]
  assert len(parts["item token"]["spectrum"]) == 7


MISTAKES = {
  "no artifact": "semantic_ids.safetensors: no such file; run mmesid_jax.train",
  "no vectors": "collaborative.safetensors: no such file",
  "truncated": "semantic_ids.safetensors: not a whole safetensors file",
  "other features": "semantic_ids.safetensors: made from other data, features or settings",
  "codes out of range": "codes.text holds 4, expected ids from 0 to 3; run mmesid_jax.train",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(workdir, mistake):
  file = workdir / "semantic_ids.safetensors"
  if mistake == "no artifact":
    file.unlink()
  elif mistake == "no vectors":
    (workdir / "collaborative.safetensors").unlink()
  elif mistake == "truncated":
    file.write_bytes(file.read_bytes()[:500])
  elif mistake == "other features":
    table = np.load(workdir / "synthetic" / "text.npy")
    np.save(workdir / "synthetic" / "text.npy", table + 1)
  else:
    rewrite(workdir, "semantic_ids", lambda tensors, _: tensors["codes.text"].fill(4))
  with pytest.raises(UserError, match=re.escape(MISTAKES[mistake])) as caught:
    id_report.examine_semantic_ids(reopen_workdir(workdir))
  assert "\n" not in str(caught.value)
  assert not (workdir / "semantic_ids.json").exists()
  assert not (workdir / "semantic_ids.html").exists()
