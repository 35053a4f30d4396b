"""Damaged and hostile .safetensors end in one line."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mmesid_jax.data.features import read_table
from mmesid_jax.errors import UserError
from mmesid_jax.files.tensor_file import TYPES, TensorFile


def written(path, dtype="F32", shape=(4, 3), size=48, *, length=None):
  """A file with one tensor "x" of zeros, whose header says anything."""
  about = {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}}
  header = json.dumps(about).encode()
  length = len(header) if length is None else length
  path.write_bytes(struct.pack("<Q", length) + header + bytes(size))
  return path


@pytest.mark.parametrize("name", [*TYPES.values()])
def test_every_type_comes_back(tmp_path, name):
  x = np.ones((4, 3), name)
  safetensors.numpy.save_file({"a": x, "empty": x[:0]}, tmp_path / "x.safetensors", {"b": "c"})
  file = TensorFile(tmp_path / "x.safetensors")
  assert sorted(file.keys()) == ["a", "empty"] and file.metadata == {"b": "c"}
  assert file.shape("a") == (4, 3) and TYPES[file.type_name("a")] == name
  np.testing.assert_array_equal(file.read("a"), x)
  np.testing.assert_array_equal(file.read("a", slice(1, 3), slice(2)), x[1:3, :2])
  assert file.read("empty").shape == (0, 3) and file.read("a").dtype == x.dtype


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"])
def test_a_type_that_numpy_lacks_is_one_line(tmp_path, dtype):
  bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(dtype, 8)
  path = written(tmp_path / "x.safetensors", dtype, (4, 4), 16 * bits // 8)
  with pytest.raises(UserError, match=rf"x\.safetensors: x holds numbers of the type {dtype}; exp"):
    read_table(path)


@pytest.mark.parametrize(
  "about",
  [
    *({"shape": (2**63, 1)}, {"shape": (2**62, 4)}, {"shape": (True, 12)}, {"shape": (-4, -3)}),
    *({"shape": (4.0, 3)}, {"length": 2**32}, {"length": 2**64 - 1}, {"length": 10}, {"size": 47}),
    *({"dtype": "F99"}, {"shape": (0, 2**63), "size": 0}, {"shape": [1] * 70, "size": 4}),
  ],
)
def test_a_header_that_does_not_fit_the_file_is_one_line(tmp_path, about):
  path = written(tmp_path / "x.safetensors", **about)
  with pytest.raises(UserError, match=r"x\.safetensors: not a whole safetensors file \("):
    read_table(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\2.", bytes(100), b"{" * 100_000])
def test_another_file_is_one_line_with_the_remedy(tmp_path, content):
  (tmp_path / "x").write_bytes(content)
  with pytest.raises(UserError, match="x: not a whole safetensors file .*; download it again"):
    TensorFile(tmp_path / "x", remedy="download it again")


def test_what_the_header_quotes_stays_in_the_line(tmp_path):
  header = json.dumps({"x": {"dtype": "F\n99", "shape": [], "data_offsets": [0, 0]}}).encode()
  (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header)
  with pytest.raises(UserError) as caught:
    TensorFile(tmp_path / "x")
  assert "\n" not in str(caught.value)


def test_bfloat16_is_that_of_ml_dtypes(tmp_path):
  path = written(tmp_path / "x.safetensors", "BF16", size=24)
  assert TensorFile(path).read("x").dtype == ml_dtypes.bfloat16
