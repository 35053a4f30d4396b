"""A file that exists is replaced only where --overwrite says so."""

import pathlib
import pickle

import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.features.join_by_key import join_vectors
from mmesid_jax.features.torch_files.torch_table import convert_torch_file
from mmesid_jax.files.atomic import check_new_file
from mmesid_jax.files.resumable import PartFiles
from mmesid_jax.reports.code_export import export_codes
from mmesid_jax.serving.all_users import write_all_users
from mmesid_jax.serving.options import Options
from mmesid_jax.stages.new_item_codes import encode_and_write

EXISTS = "exists already; name another file, or pass --overwrite"


def test_the_rule(tmp_path):
  file, source = tmp_path / "a", tmp_path / "b"
  check_new_file(file, overwrite=False)
  source.write_text("mine")
  file.symlink_to(tmp_path / "nowhere")
  with pytest.raises(UserError, match=f"--output=.*a: {EXISTS}"):
    check_new_file(file, overwrite=False)
  check_new_file(file, overwrite=True)
  with pytest.raises(UserError, match="is a folder; expected the name of a file"):
    check_new_file(tmp_path, overwrite=True)
  file.unlink()
  file.hardlink_to(source)
  with pytest.raises(UserError, match="is read by this command; name another file"):
    check_new_file(file, overwrite=True, inputs=[tmp_path / "none", source])


def convert(folder: pathlib.Path, run: pathlib.Path, **options) -> pathlib.Path:
  (folder / "x.pkl").write_bytes(pickle.dumps(np.eye(3, dtype=np.float32)))
  output = folder / "x.npy"
  yield output
  convert_torch_file(folder / "x.pkl", output, name=None, **options)


def join(folder: pathlib.Path, run: pathlib.Path, **options):
  (folder / "items.jsonl").write_text('{"item_id": 1, "key": "a"}\n{"item_id": 2, "key": "b"}\n')
  np.save(folder / "in.npy", np.eye(2))
  (folder / "keys.txt").write_text("a\nb\n")
  columns = {"key": "key", "key_column": None, "vector_columns": None}
  columns |= {"dtype": "float32", "missing": "error"}
  output = folder / "x.npy"
  yield output
  join_vectors(
    folder, [folder / "in.npy"], output, keys=[folder / "keys.txt"], **columns, **options
  )


def export(folder: pathlib.Path, run: pathlib.Path, **options):
  output = folder / "items.jsonl"
  yield output
  export_codes(run, output, data_dir=None, key=None, **options)


def recommend(folder: pathlib.Path, run: pathlib.Path, **options):
  output = folder / "recs.jsonl"
  yield output
  write_all_users(run, output, Options(top_k=3), **options)


def encode(folder: pathlib.Path, run: pathlib.Path, **options):
  np.save(folder / "new.npy", np.load(run / "synthetic/text.npy")[1:4])
  output = folder / "new.safetensors"
  yield output
  encode_and_write(run, [f"text={folder / 'new.npy'}"], output, **options)


@pytest.mark.parametrize("write", [convert, join, export, recommend, encode])
def test_commands_that_take_an_output(trained, tmp_path, write):
  for options in ({}, {"overwrite": True}):
    steps = write(tmp_path, trained, **options)
    output = next(steps)
    output.write_text("mine")
    if options:
      assert next(steps, None) is None and output.read_bytes() != b"mine"
    else:
      with pytest.raises(UserError, match=EXISTS):
        next(steps)
      assert output.read_text() == "mine"


@pytest.mark.parametrize("write", [convert, join])
def test_no_command_replaces_what_it_reads(tmp_path, write):
  steps = write(tmp_path, None, overwrite=True)
  output = next(steps)
  for source in tmp_path.glob("*.pkl"):
    output.hardlink_to(source)
  for source in tmp_path.glob("in.npy"):
    output.hardlink_to(source)
  with pytest.raises(UserError, match="is read by this command"):
    next(steps)


def test_new_items_are_not_written_as_the_artifact_of_a_stage(trained, tmp_path):
  features = [f"text={trained / 'synthetic/text.npy'}"]
  with pytest.raises(UserError, match="blend.safetensors: is the name of an artifact"):
    encode_and_write(trained, features, trained / "blend.safetensors", overwrite=True)
  with pytest.raises(UserError, match="expected a name that ends in .safetensors"):
    encode_and_write(trained, features, tmp_path / "new.npy", overwrite=False)


def test_a_run_that_was_killed_as_it_ended_is_finished(tmp_path):
  """Its output is there, and all parts: their folder goes last."""
  output, settings = tmp_path / "x.jsonl", {"a": 1}
  parts = PartFiles(output, 2, settings)
  for n in range(2):
    parts.write(n, {"n": int}, {"n": [n]})
  output.write_text('{"n":0}\n{"n":1}\n')
  PartFiles(output, 2, settings).finish()
  assert output.read_text() == '{"n":0}\n{"n":1}\n'
  parts = PartFiles(output, 2, settings, overwrite=True)
  parts.write(0, {"n": int}, {"n": [7]})
  with pytest.raises(UserError, match=EXISTS):
    PartFiles(output, 2, settings)
