"""Tables for other programs: the same rows from either format, whole or not at all."""

import contextlib
import json
import resource
import sys

import numpy as np
import polars as pl
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files import rows as exports

ODD = ["café\u2028", 'a "b"\\', "\n", "", "🧴 ماء", None]
SCHEMA = {"id": int, "name": str, "ids": list[int], "names": list[str], "scores": list[float]}
SCORES = np.float32([[0.1, -1e-7, 3e8], [1 / 3, 2.5, 0]]).astype(str).astype(float)


def columns(rows: int = 6) -> dict[str, list]:
  return {
    "scores": [SCORES[n % 2].tolist()[: n % 4] for n in range(rows)],  # in another order
    "id": [2**40 + n for n in range(rows)],
    "name": [ODD[n % 6] for n in range(rows)],
    "ids": [list(range(n % 3)) for n in range(rows)],
    "names": [[ODD[n % 6], None] for n in range(rows)],
  }


def read(path) -> list[dict]:
  if path.suffix == ".parquet":
    return pl.read_parquet(path).to_dicts()
  return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@pytest.fixture(params=[".parquet", ".jsonl"])
def path(request, tmp_path):
  return tmp_path / "new folder" / f"table{request.param}"


def test_what_is_written_is_read_again(path):
  given = columns()
  exports.write_rows(path, SCHEMA, given)
  found = read(path)
  assert [list(row) for row in found] == [list(SCHEMA)] * 6
  for name, values in given.items():
    wanted = [np.float32(v).tolist() if name == "scores" else v for v in values]
    read_again = [np.float32(r[name]).tolist() if name == "scores" else r[name] for r in found]
    assert read_again == wanted
  assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_types_do_not_depend_on_the_values(tmp_path):
  path = tmp_path / "x.parquet"
  empty = {"id": [1], "name": [None], "ids": [[]], "names": [[None]], "scores": [[]]}
  exports.write_rows(path, SCHEMA, empty)
  lists = [pl.List(pl.Int32), pl.List(pl.String), pl.List(pl.Float32)]
  assert pl.read_parquet(path).dtypes == [pl.Int64, pl.String, *lists]


def test_parts_are_joined_in_order_and_to_the_same_bytes(path):
  parts = [path.with_name(f"{n}{path.suffix}") for n in range(5)]
  for n, part in enumerate(parts):
    exports.write_rows(part, SCHEMA, columns(7 * n + 1))
  exports.join_row_files(parts, path)
  assert read(path) == [row for part in parts for row in read(part)]
  before = path.read_bytes()
  exports.join_row_files(parts, path)
  assert path.read_bytes() == before


def test_a_damaged_part_is_named(tmp_path):
  path, part = tmp_path / "x.parquet", tmp_path / "0.parquet"
  exports.write_rows(part, SCHEMA, columns())
  part.write_bytes(part.read_bytes()[:-20])
  with pytest.raises(UserError, match="a part is not as it was written"):
    exports.join_row_files([part], path)
  assert not path.exists()


@contextlib.contextmanager
def small_files():
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_and_leaves_nothing(path):
  rng = np.random.default_rng(0)
  random = {"scores": rng.random((2000, 20)).tolist()}
  part = path.with_stem("part")
  exports.write_rows(part, {"scores": list[float]}, random)
  with small_files(), pytest.raises(UserError, match=f"{path.name}: file too large"):
    exports.write_rows(path, {"scores": list[float]}, random)
  with small_files(), pytest.raises(UserError, match=f"{path.name}: file too large"):
    exports.join_row_files([part], path)
  assert [f.name for f in path.parent.iterdir()] == [part.name]


def test_half_of_a_character_is_refused(path):
  with pytest.raises(UserError, match=r"'\\ud800' is no Unicode text"):
    exports.write_rows(path, {"name": str}, {"name": ["\ud800"]})
  assert not list(path.parent.iterdir())


def test_json_lines_do_without_polars(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "polars", None)
  with pytest.raises(UserError, match=r"needs polars.*or choose a name that ends in \.jsonl"):
    exports.check_rows_file(tmp_path / "x.parquet")
  exports.check_rows_file(tmp_path / "x.jsonl")
  exports.write_rows(tmp_path / "x.jsonl", SCHEMA, columns())
  exports.join_row_files([tmp_path / "x.jsonl"], tmp_path / "y.jsonl")
  assert len(read(tmp_path / "y.jsonl")) == 6


@pytest.mark.parametrize("name", ["x.csv", "x", "x.parquet.gz", ".parquet"])
def test_other_formats_are_refused(tmp_path, name):
  with pytest.raises(UserError, match=r"expected a name that ends in \.parquet or \.jsonl"):
    exports.check_rows_file(tmp_path / name)
  (tmp_path / "x.jsonl").mkdir()
  with pytest.raises(UserError, match="is a folder"):
    exports.check_rows_file(tmp_path / "x.jsonl")
