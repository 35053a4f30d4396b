import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmesid_jax.data import features
from mmesid_jax.data.features import open_features, read_features, read_new_features
from mmesid_jax.errors import UserError


def table(rows=4, width=3, seed=0):
  return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


NUMBERS = (np.float16, np.float32, np.float64, np.int32)


@pytest.mark.parametrize(
  ("kind", "dtype"),
  [(k, d) for k in ("npy", "safetensors") for d in NUMBERS]
  + [("safetensors", ml_dtypes.bfloat16)],  # .npy does not know it
)
def test_round_trip_with_row_0_zeroed(tmp_path, kind, dtype):
  x_IV = (10 * table()).astype(dtype)
  path = tmp_path / f"x.{kind}"
  if kind == "npy":
    np.save(path, x_IV)
  else:
    save_file({"x": x_IV}, path)
  before = path.read_bytes()
  read = read_features(path, 3)
  assert read.dtype == np.float32
  assert not read[0].any()
  np.testing.assert_array_equal(read[1:], x_IV[1:].astype(np.float32))
  assert path.read_bytes() == before


def test_fortran_order_and_a_bad_padding_row_are_no_matter(tmp_path):
  x_IV = table()
  x_IV[0] = np.nan
  np.save(tmp_path / "x.npy", np.asfortranarray(x_IV))
  np.testing.assert_array_equal(read_features(tmp_path / "x.npy", 3, width=3)[1:], x_IV[1:])


def with_value(row, value, dtype=np.float32):
  x_IV = table(6).astype(dtype)
  x_IV[row, 1] = value
  return x_IV


BAD = {
  "too few rows": (table(5), r"x\.npy: 5 rows; expected 6, one for each of the 5 items"),
  "too many rows": (table(7), r"x\.npy: 7 rows; expected 6"),
  "no rows": (table(0), r"x\.npy: 0 rows; expected 6"),
  "width": (table(6, 2), r"x\.npy: rows are 2 wide; expected 3"),
  "no width": (
    table(6, 0),
    r"x\.npy: a table of shape \[6, 0\]; expected \[items \+ 1, width\], width at",
  ),
  "1-d": (table(6)[:, 0], r"x\.npy: a table of shape \[6\]; expected \[items \+ 1, width\]"),
  "3-d": (table(6)[None], r"x\.npy: a table of shape \[1, 6, 3\]"),
  "0-d": (np.float32(1), r"x\.npy: a table of shape \[\]"),
  "nan": (with_value(4, np.nan), r"x\.npy: row 4 holds NaN or infinity"),
  "inf": (with_value(2, -np.inf), r"x\.npy: row 2 holds NaN or infinity"),
  "float32 overflow": (with_value(3, 1e300, np.float64), r"x\.npy: row 3 holds NaN or infinity"),
  "objects": (np.array([["a", None]], object), r"x\.npy: not a plain .npy table .*python objects"),
  "strings": (np.full((6, 3), "a"), r"x\.npy: holds values of type <U1; expected numbers"),
  "complex": (table(6).astype(np.complex64), r"x\.npy: holds values of type complex64"),
  "all zero": (np.zeros((6, 3)), r"x\.npy: all 5 items have the same row"),
  "constant but for padding": (
    np.float32([[9] * 3, *[[1, 2, 3]] * 5]),
    r"x\.npy: all 5 items have the same row; expected vectors that tell them apart",
  ),
  "records": (np.zeros((6, 3), [("a", "f4")]), r"x\.npy: holds values of type \[\('a', '<f4'\)\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_name_file_and_fault(tmp_path, name):
  x_IV, message = BAD[name]
  np.save(tmp_path / "x.npy", x_IV, allow_pickle=True)
  with pytest.raises(UserError, match=message):
    read_features(tmp_path / "x.npy", 5, width=3)


@pytest.mark.parametrize("name", ["nan", "inf", "constant but for padding"])
def test_what_chunks_find_counts_over_the_table(tmp_path, monkeypatch, name):
  monkeypatch.setattr(features, "CHUNK_BYTES", 4 * 3 * 2)  # two rows
  test_bad_tables_name_file_and_fault(tmp_path, name)
  bad_IV = table(6)
  bad_IV[[1, 4, 5], 0] = np.nan
  np.save(tmp_path / "x.npy", bad_IV)
  with pytest.raises(UserError, match=r"row 1 holds NaN or infinity \(3 such rows\)"):
    open_features(tmp_path / "x.npy", 5)
  np.save(tmp_path / "x.npy", np.float32([[0, 0], [1, 1], [1, 1], [1, 1], [1, 2]]))
  open_features(tmp_path / "x.npy", 4)  # one item differs, in the last chunk


def test_two_items_in_one_row_and_a_single_item_are_legal(tmp_path):
  np.save(tmp_path / "x.npy", np.float32([[0], [1], [1], [2]]))
  assert read_features(tmp_path / "x.npy", 3).shape == (4, 1)
  np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
  assert read_features(tmp_path / "x.npy", 1).shape == (2, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_open_tables_stay_on_disk(tmp_path, dtype):
  np.save(tmp_path / "x.npy", table(6).astype(dtype))
  opened = open_features(tmp_path / "x.npy", 5)
  assert isinstance(opened, np.memmap) and opened.dtype == dtype and not opened.flags.writeable


@pytest.mark.parametrize("dtype", [np.float64, np.int16, ">f4"])
def test_other_types_are_opened_as_float32(tmp_path, dtype):
  x_IV = (10 * table(6)).astype(dtype)
  np.save(tmp_path / "x.npy", x_IV)
  opened = open_features(tmp_path / "x.npy", 5)
  assert opened.dtype == np.float32 and opened.dtype.isnative
  np.testing.assert_array_equal(opened, x_IV.astype(np.float32))


def test_bad_files(tmp_path):
  for name in ("x.npy", "x.safetensors"):
    with pytest.raises(UserError, match=f"{name}: no such file"):
      read_features(tmp_path / name, 5)
  (tmp_path / "x.csv").write_text("1,2")
  with pytest.raises(UserError, match=r"x\.csv: unknown kind .* \.npy or \.safetensors"):
    read_features(tmp_path / "x.csv", 5)
  np.save(tmp_path / "x.npy", table(6))
  whole = (tmp_path / "x.npy").read_bytes()
  for data in (b"", b"garbage", whole[:40], whole[:-4]):
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.npy: not a plain \.npy table \(damaged"):
      read_features(tmp_path / "x.npy", 5)


def test_bad_safetensors(tmp_path):
  path = tmp_path / "x.safetensors"
  save_file({"a": table(6), "b": table(6)}, path)
  with pytest.raises(UserError, match=r"x\.safetensors: 2 tensors \(a, b\); expected exactly one"):
    read_features(path, 5)
  save_file({"a": table(6)}, path)
  whole = path.read_bytes()
  for data in (b"", b"garbage garbage", whole[:-4]):
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.safetensors: not a whole safetensors file"):
      read_features(path, 5)
  header = json.dumps({"a": {"dtype": "C3PO", "shape": [1], "data_offsets": [0, 4]}}).encode()
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
  with pytest.raises(UserError, match=r"x\.safetensors: not a whole safetensors file"):
    read_features(path, 5)


BAD_NEW = {
  "empty": (table(0), r"x\.npy: a table of shape \[0, 3\]; expected \[new items, 3\]"),
  "flat": (table()[0], r"x\.npy: a table of shape \[3\]; expected \[new items, 3\]"),
  "width": (table(width=2), r"x\.npy: rows are 2 wide; expected 3"),
  "no width": (table(width=0), r"x\.npy: rows are 0 wide; expected 3"),
  "nan": (with_value(0, np.nan), r"x\.npy: row 0 holds NaN or infinity"),
  "padding": (with_value(0, 0) * (np.arange(6)[:, None] > 0), r"x\.npy: row 0 is all zeros; new"),
  "strings": (np.full((6, 3), "a"), r"x\.npy: holds values of type <U1"),
}


@pytest.mark.parametrize("name", BAD_NEW)
def test_bad_tables_of_new_items_name_file_and_fault(tmp_path, name):
  x_NV, message = BAD_NEW[name]
  np.save(tmp_path / "x.npy", x_NV)
  with pytest.raises(UserError, match=message):
    read_new_features(tmp_path / "x.npy", width=3)
