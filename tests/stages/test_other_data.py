"""A trained workdir notices that its data is not what it was trained on."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, read_header, write_artifact
from mmesid_jax.reports.code_export import export_codes
from mmesid_jax.serving.answer import print_recommendations
from mmesid_jax.serving.options import Options
from mmesid_jax.stages.collaborative_stage import COLLABORATIVE
from mmesid_jax.stages.workdir import open_workdir, reopen_workdir


def reverse_a_history(workdir: pathlib.Path) -> None:
  file = workdir / "synthetic" / "sequences.txt"
  (user, *items), *others = (line.split() for line in file.read_text().splitlines())
  lines = [[user, *reversed(items)], *others]
  file.write_text("".join(" ".join(line) + "\n" for line in lines))


def test_other_data_is_refused_where_figures_and_exports_would_be_wrong(workdir, tmp_path):
  reopen_workdir(workdir)
  reverse_a_history(workdir)
  with pytest.raises(UserError, match="holds other users, items or interactions .* --data_dir"):
    reopen_workdir(workdir)
  with pytest.raises(UserError, match="holds other users, items or interactions"):
    export_codes(workdir, tmp_path / "ids.jsonl", data_dir=None, key=None)
  assert not (tmp_path / "ids.jsonl").exists()


def test_newer_histories_are_recommended_for_with_a_warning(workdir, capsys):
  print_recommendations(workdir, "user", ["1"], Options())
  assert not capsys.readouterr().err
  reverse_a_history(workdir)
  print_recommendations(workdir, "user", ["1"], Options())
  assert "warning: " in (err := capsys.readouterr().err)
  assert err.count("\n") == 1 and "its item ids must mean the same items" in err


def test_a_synthetic_catalogue_has_no_other_folder(workdir, tmp_path):
  with pytest.raises(UserError, match=f"--data_dir={tmp_path}: .* synthetic catalogue"):
    reopen_workdir(workdir, str(tmp_path))


def give_keys(workdir: pathlib.Path, keys: list[str]) -> None:
  file = workdir / "synthetic" / "items.jsonl"
  items = [json.loads(line) for line in file.read_text().splitlines()]
  pairs = zip(items, keys, strict=True)
  file.write_text("".join(json.dumps({**item, "key": key}) + "\n" for item, key in pairs))


def test_items_with_other_keys_are_other_items(workdir, tmp_path, capsys):
  """Another order of items.jsonl leaves all numbers as they are."""
  keys = [f"K{i}" for i in range(40)]
  give_keys(workdir, keys)
  reopen_workdir(workdir)  # made before keys were compared, or without keys
  tensors, header = read_artifact(workdir / "recommender.safetensors", "recommender")
  digests = reopen_workdir(workdir).dataset.item_digests
  write_artifact(workdir / "recommender.safetensors", tensors, header | {"items": digests})
  file = workdir / "synthetic" / "items.jsonl"
  file.write_text(file.read_text().replace('"title": "', '"title": "new '))
  reopen_workdir(workdir)
  assert not capsys.readouterr().err
  give_keys(workdir, [*keys[1:], keys[0]])
  with pytest.raises(UserError, match=r"items\.jsonl: holds items with other keys .* --data_dir"):
    export_codes(workdir, tmp_path / "ids.jsonl", data_dir=None, key=None)
  assert not (tmp_path / "ids.jsonl").exists()
  print_recommendations(workdir, "user", ["1"], Options())
  assert "items.jsonl: holds items with other keys" in (err := capsys.readouterr().err)
  assert err.count("\n") == 1 and "its item ids must mean the same items" in err
  file.unlink()
  reopen_workdir(workdir)


def test_an_artifact_holds_the_digest_of_the_keys(tiny, tmp_path):
  open_workdir(tiny(), tmp_path)
  give_keys(tmp_path, [f"K{i}" for i in range(40)])
  workdir = open_workdir(tiny(), tmp_path)
  COLLABORATIVE.write(workdir, {"items": np.zeros((41, 8), np.float32)}, None)
  header = read_header(workdir.artifact("collaborative"), "collaborative")
  assert header["items"] == {
    "file": hashlib.sha256((tmp_path / "synthetic" / "items.jsonl").read_bytes()).hexdigest(),
    "keys": hashlib.sha256(json.dumps([f"K{i}" for i in range(40)]).encode()).hexdigest(),
  }
