"""Files that no run made are neither removed nor written over, whatever their names are."""

import json
import pathlib
import pickle
from collections.abc import Mapping

import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.data.folder.tfds_reader import export_plain_files
from mmesid_jax.errors import UserError
from mmesid_jax.experiments.cold_start_run import run_cold_start
from mmesid_jax.features.torch_files.torch_table import convert_torch_file
from mmesid_jax.files.lock import lock_folder
from mmesid_jax.files.resumable import PartFiles, open_partial_table
from mmesid_jax.stages.workdir import FILES, open_workdir

SCHEMA = {"a": int}


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def write(folder: pathlib.Path, files: Mapping[str, str]) -> dict[str, bytes]:
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
  return contents(folder)


@pytest.mark.parametrize("keyed", [True, False])
def test_converted_vectors_do_not_take_the_place_of_other_keys(tmp_path, keyed):
  source, table = tmp_path / "x.pkl", tmp_path / "x.npy"
  vectors = np.eye(3, dtype=np.float32)
  source.write_bytes(
    pickle.dumps({f"k{n}": x for n, x in enumerate(vectors)} if keyed else vectors)
  )
  before = write(tmp_path, {"x.keys.json": '["mine"]'})
  with pytest.raises(UserError, match=r"x\.keys\.json: exists and holds other keys"):
    convert_torch_file(source, table, name=None)
  assert contents(tmp_path) == before
  if keyed:
    (tmp_path / "x.keys.json").write_text('["k0", "k1", "k2"]')
    convert_torch_file(source, table, name=None)
    assert len(np.load(table)) == 3


@pytest.mark.parametrize("text", ["no line", "a line\n", '{"made_from": 3}\n', "{}"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_partial_table_of_another_program_stays(tmp_path, text, overwrite):
  before = write(tmp_path, {"x.npy.partial": text})
  table = open_partial_table(
    tmp_path / "x.npy.partial", {"a": 1}, 4, "float32", overwrite=overwrite
  )
  with pytest.raises(UserError, match="another program wrote it"), table:
    pytest.fail("written over")
  assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{", '{"made_from": {"a": 1}}'])
def test_a_partial_table_that_was_killed_as_it_began_is_begun_again(tmp_path, text):
  write(tmp_path, {"x.npy.partial": text})
  with open_partial_table(tmp_path / "x.npy.partial", {"a": 1}, 4, "f4", overwrite=False) as table:
    assert len(table) == 0


def test_a_file_among_finished_parts_stays(tmp_path):
  parts = PartFiles(tmp_path / "x.jsonl", 1, {})
  parts.write(0, SCHEMA, {"a": [1]})
  write(parts.folder, {"notes": "mine", ".000000.jsonl.0123abcd.tmp": "half written"})
  parts.finish()
  assert contents(tmp_path) == {"x.jsonl": b'{"a":1}\n', "x.jsonl.parts/notes": b"mine"}


def test_a_file_named_lock_stays(tmp_path):
  before = write(tmp_path, {"lock": "mine"})
  with pytest.raises(UserError, match="lock: holds b'mine', so no run wrote it"):
    with lock_folder(tmp_path):
      pytest.fail("written over")
  assert contents(tmp_path) == before


@pytest.mark.parametrize(
  ("files", "says"),
  [
    ({"config.json": '{"model_type": "llama"}'}, "config.json: not the file of a run"),
    ({"synthetic/text.npy": "mine"}, "synthetic: holds text.npy"),
    ({"dataset/sequences.txt": "1 2 3", "dataset/items.npy": "mine"}, "dataset: holds a data set"),
  ],
)
def test_folders_and_files_of_these_names_in_a_workdir_stay(tmp_path, tiny, files, says):
  before = write(tmp_path, files)
  with pytest.raises(UserError, match=says):
    pipeline.run_pipeline(tiny(), tmp_path, overwrite=True)
  after = contents(tmp_path)
  assert {name: after[name] for name in before} == before


def test_a_synthetic_catalogue_of_other_sizes_replaces_its_own_files_only(tmp_path, tiny):
  open_workdir(tiny(), tmp_path)
  write(tmp_path / "synthetic", {"mine.npy": "mine"})
  larger = open_workdir(tiny(changes={"data.synthetic.num_items": 44}), tmp_path)
  assert larger.dataset.num_items == 44
  assert json.loads((tmp_path / "synthetic" / "made_from.json").read_text())["num_items"] == 44
  assert (tmp_path / "synthetic" / "mine.npy").read_text() == "mine"


def test_a_folder_of_cold_start_that_another_program_wrote_stays(tmp_path, tiny):
  before = write(tmp_path / "warm", {"sequences.txt": "mine"})
  with pytest.raises(UserError, match=r"warm: holds sequences\.txt"):
    run_cold_start(tiny(), tmp_path, fraction=0.1, split_seed=0, overwrite=True)
  assert contents(tmp_path / "warm").items() >= before.items()


def test_plain_files_that_no_export_wrote_stay(tmp_path, monkeypatch):
  from mmesid_jax.data.folder import tfds_reader

  monkeypatch.setattr(tfds_reader, "find_config_folder", lambda directory, name: directory)
  before = write(tmp_path / "plain", {"sequences.txt": "mine"})
  with pytest.raises(UserError, match=r"plain: holds sequences\.txt"):
    export_plain_files(tmp_path, tmp_path / "plain")
  assert contents(tmp_path / "plain") == before


@pytest.mark.parametrize(
  "link",
  [
    *("recommender", "recommender/best", "recommender/damaged", "recommender/steps/3"),
    *("semantic_ids/tensorboard", "ranks", "dataset", "synthetic", "plain", "adapter", "refit"),
    *("refit/ranks", "refit/recommender/best", "refit/blend"),
  ],
)
@pytest.mark.parametrize("target", ["photos", "nowhere"])
def test_a_link_in_the_place_of_a_folder_of_a_workdir_is_not_followed(
  tmp_path, tiny, monkeypatch, link, target
):
  monkeypatch.setattr(pipeline, "_run_stages", lambda *_: pytest.fail("it trains"))
  before = write(tmp_path / "photos", {"2023/a.jpg": "mine", "3/b.jpg": "mine"})
  place = tmp_path / "run" / link
  place.parent.mkdir(parents=True)
  place.symlink_to(tmp_path / target)
  with pytest.raises(UserError, match=f"{place}: is a symbolic link to {tmp_path / target}, .*"):
    pipeline.run_pipeline(tiny(), tmp_path / "run", refit=True)
  assert contents(tmp_path / "photos") == before
  assert {path.name for path in tmp_path.iterdir()} == {"photos", "run"}


@pytest.mark.parametrize("link", ["warm", "whole_dataset", "synthetic"])
def test_a_link_in_the_place_of_a_folder_of_cold_start_is_not_followed(
  tmp_path, tiny, monkeypatch, link
):
  monkeypatch.setattr(pipeline, "run_pipeline", lambda *_, **__: pytest.fail("it trains"))
  (tmp_path / "run").mkdir()
  (tmp_path / "mine").mkdir()
  (tmp_path / "run" / link).symlink_to(tmp_path / "mine")
  with pytest.raises(UserError, match=f"run/{link}: is a symbolic link to {tmp_path / 'mine'}"):
    run_cold_start(tiny(), tmp_path / "run", fraction=0.1, split_seed=0, overwrite=True)
  assert not contents(tmp_path / "mine")


def test_a_workdir_may_be_a_link_and_so_may_files_in_it(tmp_path, tiny):
  open_workdir(tiny(), tmp_path / "run")
  (tmp_path / "run").rename(tmp_path / "elsewhere")
  (tmp_path / "run").symlink_to("elsewhere")
  (tmp_path / "mark.json").write_bytes((tmp_path / "run/synthetic/made_from.json").read_bytes())
  (tmp_path / "run/synthetic/made_from.json").unlink()
  (tmp_path / "run/synthetic/made_from.json").symlink_to(tmp_path / "mark.json")
  assert open_workdir(tiny(), tmp_path / "run").dataset.num_items == 40


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("folder", [".", "refit"])
@pytest.mark.parametrize(
  "name",
  [
    *(*FILES, "ranks/test-counts.npy", "collaborative/metrics.jsonl", "counts/fingerprint"),
    *("recommender/best/3/notes", "adapter/adapter_config.json"),
  ],
)
def test_files_of_these_names_where_no_run_began_stay(
  tmp_path, tiny, monkeypatch, name, folder, overwrite
):
  monkeypatch.setattr(pipeline, "_run_stages", lambda *_: pytest.fail("it trains"))
  before = write(tmp_path / folder, {name: "mine"})
  with pytest.raises(UserError, match=f"{tmp_path / folder / name}: was not written by a run"):
    pipeline.run_pipeline(tiny(), tmp_path, overwrite=overwrite, refit=True)
  assert contents(tmp_path / folder).items() >= before.items()


@pytest.mark.parametrize("name", ["notes.txt", "steps/notes", "best/mine/1", "trace/a", ".a.tmp"])
def test_overwrite_removes_what_training_wrote_and_nothing_else(tmp_path, tiny, monkeypatch, name):
  monkeypatch.setattr(pipeline, "_run_stages", lambda *_: None)
  monkeypatch.setattr(pipeline, "report_ranks", lambda *_: None)
  pipeline.run_pipeline(tiny(), tmp_path)
  own = ("metrics.jsonl", "steps/3/params/d/a", "best/4.orbax-checkpoint-tmp/x", "damaged/2/y")
  own += ("tensorboard/events.out.1", ".metrics.jsonl.0123abcd.tmp")
  stage, of_refit = tmp_path / "recommender", tmp_path / "refit" / "recommender"
  before = write(stage, dict.fromkeys((*own, name), "mine") | {"fingerprint": "another's"})
  with pytest.raises(UserError, match=f"{stage / name}: was not written by a run, and --overwrite"):
    pipeline.run_pipeline(tiny(), tmp_path, overwrite=True)
  assert contents(stage) == before
  (stage / name).unlink()
  write(tmp_path / "refit", {"config.json": (tmp_path / "config.json").read_text()})
  write(of_refit, {name: "mine"})
  with pytest.raises(UserError, match=f"{of_refit / name}: was not written by a run, and"):
    pipeline.run_pipeline(tiny(), tmp_path, overwrite=True, refit=True)
  pipeline.run_pipeline(tiny(), tmp_path, overwrite=True)
  assert not stage.exists() and (of_refit / name).exists()


def test_a_run_whose_config_was_deleted_as_told_goes_on(tmp_path, tiny, monkeypatch):
  begun = []
  monkeypatch.setattr(pipeline, "_run_stages", lambda *_: begun.append(True))
  monkeypatch.setattr(pipeline, "report_ranks", lambda *_: None)
  for _ in range(2):
    pipeline.run_pipeline(tiny(), tmp_path)
    (tmp_path / "config.json").unlink()
  assert len(begun) == 2
