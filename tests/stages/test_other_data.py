"""A trained workdir notices that its data is not what it was trained on."""

import pathlib

import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.reports.code_export import export_codes
from mmesid_jax.serving.answer import print_recommendations
from mmesid_jax.serving.served_model import Options
from mmesid_jax.stages.workdir import reopen_workdir


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
