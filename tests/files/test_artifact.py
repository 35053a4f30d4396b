"""Artifacts are read as they were written, or not at all."""

import json
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, read_header, write_artifact

TENSORS = {
  "a.matrix": np.arange(12, dtype=np.float32).reshape(3, 4).T,
  "a.half": np.ones(5, ml_dtypes.bfloat16),
  "b.scalar": np.float32(2.5),
  "b.empty": np.zeros((0, 4), np.float32),
  "b.codes": np.arange(6).reshape(2, 3),
}


def written(folder: pathlib.Path, **changed: np.ndarray) -> pathlib.Path:
  path = folder / "x.safetensors"
  write_artifact(path, TENSORS | changed, {"stage": "x", "seed": 123456})
  return path


def test_what_was_written_is_read(tmp_path):
  tensors, header = read_artifact(written(tmp_path), "x")
  assert header == {"stage": "x", "seed": 123456, "schema": 2}
  assert tensors.keys() == TENSORS.keys()
  for name, x in TENSORS.items():
    assert tensors[name].dtype == x.dtype
    np.testing.assert_array_equal(tensors[name], x)


def test_no_byte_can_change_unnoticed(tmp_path):
  path = written(tmp_path)
  content = path.read_bytes()
  for place in range(len(content)):
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    try:
      tensors, header = read_artifact(path, "x")
    except UserError:
      continue
    # a name or a space of the JSON: everything is still there
    assert header["seed"] == 123456, content[place - 9 : place + 9]
    for name, x in tensors.items():
      np.testing.assert_array_equal(x, TENSORS[name])
      assert x.dtype == TENSORS[name].dtype


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_refused(tmp_path, value, dtype):
  path = written(tmp_path, **{"b.bad": np.array([1, value, 2], dtype)})
  with pytest.raises(UserError, match=r"b\.bad holds values that are not finite; run mmesid_jax"):
    read_artifact(path, "x")
  assert read_header(path, "x")["stage"] == "x"
  assert len(read_artifact(path, "x", prefix="a.")[0]) == 2


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_others_may_read_it_as_the_umask_says(tmp_path, umask):
  before = os.umask(umask)
  try:
    path = written(tmp_path)
  finally:
    os.umask(before)
  assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_artifact_without_digests_is_taken_with_a_warning(tmp_path, capsys):
  path = tmp_path / "old.safetensors"
  header = json.dumps({"stage": "x", "schema": 2})
  safetensors.numpy.save_file({"y": np.ones(3)}, path, metadata={"mmesid": header})
  read_artifact(path, "x")
  assert f"{path}: was written before artifacts had digests" in capsys.readouterr().err
