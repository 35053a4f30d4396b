import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mmesid_jax.data import features
from mmesid_jax.data.features import (
  fit_whitening,
  open_features,
  read_features,
  read_new_features,
  whiten,
)
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
  "no width": (table(6, 0), r"x\.npy: a table of shape \[6, 0\]"),
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
    with pytest.raises(UserError, match=r"x\.safetensors: not a readable"):
      read_features(path, 5)
  header = json.dumps({"a": {"dtype": "C3PO", "shape": [1], "data_offsets": [0, 4]}}).encode()
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
  with pytest.raises(UserError, match=r"x\.safetensors: not a readable"):
    read_features(path, 5)


def whitened(x_IV, width, std):
  return whiten(x_IV, fit_whitening(x_IV, width, std))


def test_whitening_gives_the_principal_components_unit_covariance():
  """Against numpy's SVD, up to each component's sign."""
  x_IV = table(200, 8) @ np.diag(np.arange(8, 0, -1)) + 5
  x_IV[0] = 0
  y_IW = whitened(x_IV, 5, 0.5)
  assert y_IW.shape == (200, 5) and y_IW.dtype == np.float32 and not y_IW[0].any()
  np.testing.assert_allclose(y_IW[1:].mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(np.cov(y_IW[1:].T, ddof=0), 0.25 * np.eye(5), atol=1e-6)
  left, _, _ = np.linalg.svd(x_IV[1:] - x_IV[1:].mean(0), full_matrices=False)
  alignment = 2 * left[:, :5].T @ y_IW[1:] / np.sqrt(199)
  np.testing.assert_allclose(np.abs(alignment), np.eye(5), atol=1e-5)


@given(st.permutations(list(range(1, 30))), st.integers(1, 6))
def test_whitening_does_not_depend_on_the_order_of_the_items(order, width):
  x_IV = table(30, 6, seed=1)
  order = [0, *order]
  np.testing.assert_allclose(
    whitened(x_IV, width, 1.0)[order], whitened(x_IV[order], width, 1.0), atol=1e-4
  )


def test_whitening_ignores_row_0_and_fixes_the_sign():
  x_IV = table(50, 4)
  shifted = x_IV.copy()
  shifted[0] = 1e6
  np.testing.assert_array_equal(whitened(x_IV, 4, 1.0), whitened(shifted, 4, 1.0))
  line_IV = np.outer(np.arange(11.0), [-3, 1])  # its one direction's largest loading is the first
  y_IW = whitened(line_IV, 1, 1.0)
  assert (np.diff(y_IW[1:, 0]) < 0).all()


def test_directions_without_variance_stay_zero():
  x_IV = table(40, 2) @ table(2, 6)  # rank 2 in any 6 directions: the rest is rounding
  y_IW = whitened(x_IV, 4, 1.0)
  np.testing.assert_allclose(y_IW[1:].std(0), [1, 1, 0, 0], atol=1e-5)
  assert not whitened(np.ones((5, 3), np.float32), 2, 1.0).any()


@pytest.mark.parametrize("width", [0, 4])
def test_whitening_to_an_impossible_width(width):
  with pytest.raises(ValueError, match=f"width {width} of a table that is 3 wide"):
    fit_whitening(table(), width, 1.0)


def test_new_rows_are_whitened_as_those_of_training(tmp_path):
  """Rows of a file without padding, in another order; and by numpy's own inverse square root."""
  x_IV = table(60, 4) @ np.diag([3, 2, 1, 0.5]) + 5
  by = fit_whitening(x_IV, 4, 0.5)
  np.save(tmp_path / "new.npy", x_IV[[7, 3]])
  new_NV = read_new_features(tmp_path / "new.npy", width=4)
  np.testing.assert_allclose(by(new_NV), whiten(x_IV, by)[[7, 3]], atol=1e-5)
  precision = np.linalg.inv(np.cov(x_IV[1:].T, ddof=0))
  away_V = np.float64([[1, -2, 3, 40]]) - x_IV[1:].mean(0)  # as far as no row of training is
  distance = 0.25 * away_V @ precision @ away_V.T
  np.testing.assert_allclose((by(away_V + x_IV[1:].mean(0)) ** 2).sum(), distance, rtol=1e-4)


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
