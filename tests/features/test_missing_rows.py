"""The partial table and the one it becomes; no encoder is needed."""

import json

import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.features.missing_rows import (
  is_table_up_to_date,
  record_path,
  write_filled_table,
  write_record,
)
from mmesid_jax.files.resumable import open_partial_table
from mmesid_jax.hf.pretrained import import_extra

MADE_FROM = {"model": "abc", "batch": 2}
X = np.arange(1, 13, dtype=np.float32).reshape(4, 3)


def opened(path, made_from=MADE_FROM, *, overwrite=False):
  return open_partial_table(path, made_from, 3, "float32", overwrite=overwrite)


def test_rows_survive_and_one_that_was_cut_short_does_not_count(tmp_path):
  path = tmp_path / "x.npy.partial"
  with opened(path) as table:
    table.append(X[:2])
    table.append(X[2:])
  path.write_bytes(path.read_bytes()[:-1])
  with opened(path) as table:
    assert len(table) == 3
    np.testing.assert_array_equal(table.rows(), X[:3])
    table.truncate(2)
    table.append(X[2:])
    np.testing.assert_array_equal(table.rows(), X)


@pytest.mark.parametrize("size", [0, 1, 20])
def test_a_file_that_was_killed_in_its_first_line_begins_anew(tmp_path, size):
  path = tmp_path / "x.npy.partial"
  with opened(path):
    pass
  path.write_bytes(path.read_bytes()[:size])
  with opened(path) as table:
    assert len(table) == 0
    table.append(X)
    np.testing.assert_array_equal(table.rows(), X)


def test_rows_made_from_something_else_are_refused_and_overwritten_when_asked(tmp_path):
  path = tmp_path / "x.npy.partial"
  with opened(path) as table:
    table.append(X)
  other = MADE_FROM | {"model": "xyz"}
  with pytest.raises(UserError, match="model was 'abc', now 'xyz'"), opened(path, other):
    pass
  with opened(path) as table:  # still there
    assert len(table) == 4
  with opened(path, other, overwrite=True) as table:
    assert len(table) == 0
  with opened(path, other) as table:
    assert len(table) == 0


def test_one_run_at_a_time(tmp_path):
  with (
    opened(tmp_path / "x"),
    pytest.raises(UserError, match="another run"),
    opened(tmp_path / "x"),
  ):
    pass
  with opened(tmp_path / "x"):
    pass


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("missing", ["mean", "zero"])
def test_rows_go_to_their_items_and_missing_rows_are_filled(tmp_path, missing, chunk, monkeypatch):
  monkeypatch.setattr("mmesid_jax.features.missing_rows.CHUNK_ROWS", chunk)
  rows = X.copy()
  rows[1] = np.nan  # a broken image, of item 5
  path = tmp_path / "x.npy"
  assert write_filled_table(path, rows, np.array([3, 5, 1, 6]), 6, missing, {"made_from": {}}) == 3
  x_IV = np.load(path, allow_pickle=False)
  filling = X[[0, 2, 3]].mean(0) if missing == "mean" else np.zeros(3)
  expected = [np.zeros(3), X[2], filling, X[0], filling, filling, X[3]]
  np.testing.assert_allclose(x_IV, expected, rtol=1e-6)
  assert x_IV.dtype == np.float32
  assert json.loads((tmp_path / "x.json").read_text()) == {"made_from": {}, "missing": 3}
  assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.npy"]


def test_a_table_is_up_to_date_when_its_record_says_so(tmp_path):
  path = tmp_path / "x.npy"
  assert not is_table_up_to_date(path, MADE_FROM, overwrite=False)
  path.write_bytes(b"")
  with pytest.raises(UserError, match="does not say what it was made from"):
    is_table_up_to_date(path, MADE_FROM, overwrite=False)
  write_record(path, {"made_from": MADE_FROM})
  assert json.loads(record_path(path).read_text())["made_from"] == MADE_FROM
  assert is_table_up_to_date(path, MADE_FROM, overwrite=False)
  assert is_table_up_to_date(path, MADE_FROM, overwrite=True)  # nothing is done twice
  with pytest.raises(UserError, match="batch was 2, now 3"):
    is_table_up_to_date(path, {**MADE_FROM, "batch": 3}, overwrite=False)
  assert not is_table_up_to_date(path, {**MADE_FROM, "batch": 3}, overwrite=True)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  with pytest.raises(UserError, match=r'pip install "mmesid_jax\[encode\]"'):
    import_extra("torch")
