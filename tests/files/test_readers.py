"""Damaged and hostile .npy and JSON files end in one line, before anything is allocated."""

import io
import json
import struct
import tracemalloc

import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import parse_json, read_json_object, read_npy

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def npy(shape="(4, 3)", *, descr="'<f4'", order="False", version=1, length=None) -> bytes:
  """A .npy file of 12 numbers whose header says anything."""
  header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
  length = len(header) if length is None else length
  prefix = struct.pack("<H" if version == 1 else "<I", length)
  return b"\x93NUMPY" + bytes([version, 0]) + prefix + header + X.tobytes()


def saved(save, *arrays, **named) -> bytes:
  file = io.BytesIO()
  save(file, *arrays, **named)
  return file.getvalue()


@pytest.mark.parametrize("table", [X, X.T, X[:0], X[:, :0], X[0], np.float64(3), np.array(["a"])])
def test_a_table_comes_back(tmp_path, table):
  np.save(tmp_path / "x.npy", table)
  found = read_npy(tmp_path / "x.npy")
  np.testing.assert_array_equal(found, table)
  assert found.dtype == table.dtype


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_the_header_are_read(tmp_path, version):
  (tmp_path / "x.npy").write_bytes(npy(version=version))
  np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), X)


@pytest.mark.parametrize(
  ("content", "told"),
  {
    "empty": (b"", "another format"),
    "an archive": (saved(np.savez, X), "npz archive"),
    "only PK": (b"PK", "another zip file"),
    "no archive": (b"PK\3\4" + bytes(100), "another zip file"),
    "cut in its magic": (b"\x93NUM", "another format"),
    "cut in its header": (npy()[:30], "another format"),
    "cut in its numbers": (npy()[:-1], r"\[4, 3\] in \d+ bytes"),
    "version 3": (npy(version=3), "another format"),
    "a header of 4 GiB": (npy(version=2, length=2**32 - 1), "another format"),
    "a header of 64 KiB": (npy(length=2**16 - 1), "another format"),
    "a large shape": (npy("(2**63, 1)"), "another format"),
    "a shape of 2^63": (npy(f"({2**63}, 1)"), "a shape of"),
    "no numbers, 2^63 rows": (npy(f"({2**63}, 0)"), "a shape of"),
    "numbers beyond int64": (npy(f"({2**62}, {2**62})"), "a shape of"),
    "a shape of booleans": (npy("(True, 3)"), "a shape of"),
    "a negative shape": (npy("(-4, -3)"), "a shape of"),
    "a shape of floats": (npy("(4.0, 3)"), "another format"),
    "a shape that is a list": (npy("[4, 3]"), "another format"),
    "deep": (npy("(" * 5000 + ")" * 4999), "another format"),
    "deep lists": (npy("[" * 200 + "]" * 200), "another format"),
    "an order that is no truth value": (npy(order="1"), "another format"),
    "objects": (saved(np.save, np.array([None])), "python objects"),
    "an unknown type": (npy(descr="'x9'"), "another format"),
    "numbers of no bytes": (npy(descr="'V0'"), "a shape of"),
    "a type of 2 GiB": (npy(descr=f"'V{2**31 - 1}'"), "a shape of"),
    "code": (npy("__import__('os').getpid()"), "another format"),
  }.values(),
)
def test_another_npy_is_one_line(tmp_path, content, told):
  path = tmp_path / "x.npy"
  path.write_bytes(content)
  tracemalloc.start()
  with pytest.raises(UserError, match=rf"x\.npy: not a plain \.npy table \(.*{told}"):
    read_npy(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20


def test_names_that_are_no_files(tmp_path):
  with pytest.raises(UserError, match="no such file"):
    read_npy(tmp_path / "none.npy")
  with pytest.raises(UserError, match="not a plain .npy table .*directory"):
    read_npy(tmp_path)


DEEP = 100_000


@pytest.mark.parametrize(
  "text",
  [
    *("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" * DEEP),
    *("[" * 101 + "]" * 101, '[{"a":' * 60 + "1" + "}]" * 60),
    *("", "{", "9" * 5000, '{"a": 1} 2', b"\xff\xfe", b'{"a": "\xff"}'),
  ],
)
def test_json_is_a_value_or_a_value_error(text):
  with pytest.raises(ValueError):
    parse_json(text)
  if isinstance(text, str):
    with pytest.raises(ValueError):
      parse_json(text.encode())


def test_deep_json_within_the_limit_and_long_lists_are_read():
  deep = "[" * 100 + "]" * 100
  assert json.dumps(parse_json(deep)) == deep
  assert len(parse_json("[" + "[1]," * 5000 + "[1]]")) == 5001


@pytest.mark.parametrize(
  ("content", "told"),
  [
    (b"[1]", "not a JSON object, but a list; delete it"),
    (b"[" * DEEP, "not a JSON object .nested more than 100 deep.; delete it"),
    (b"\xff", "not a JSON object .*; delete it"),
  ],
)
def test_a_json_file_is_an_object_or_one_line(tmp_path, content, told):
  (tmp_path / "x.json").write_bytes(content)
  with pytest.raises(UserError, match=rf"x\.json: {told}"):
    read_json_object(tmp_path / "x.json", remedy="delete it")
  with pytest.raises(UserError, match="no such file"):
    read_json_object(tmp_path / "none.json")
