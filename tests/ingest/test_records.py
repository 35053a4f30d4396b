import gzip
import json
import random
import warnings

import polars as pl
import pytest
from msgspec import Struct, field

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import compressed_lines, records
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.records import read_records


class Item(Struct):
  key: str = field(name="asin")
  title: str | None = None


def read(path, allowed=99):
  bad = BadLines(allowed)
  return [(n, item.key, item.title) for n, item in read_records(path, Item, bad)], bad.quoted


def test_json_and_pythons_notation_may_be_mixed(tmp_path):
  path = tmp_path / "meta.json.gz"
  lines = [
    json.dumps({"asin": "1", "title": "a \N{SNOWMAN}", "price": 3}),
    """{'asin': '2', 'title': "d'Or", 'related': {'also': ['x']}, 'price': 1.5, 'new': True}""",
    "{'asin': '3', 'title': None}",
    r"{'asin': '4', 'title': 'a\x00\tb'}",
  ]
  path.write_bytes(gzip.compress("\n".join(lines).encode()))
  found, bad = read(path)
  assert found == [(1, "1", "a \N{SNOWMAN}"), (2, "2", "d'Or"), (3, "3", None), (4, "4", "a\0\tb")]
  assert not bad


def test_half_of_a_surrogate_pair_matters_only_where_it_is_read(tmp_path):
  """msgspec refuses the whole line."""
  path = tmp_path / "meta"
  lines = [
    r'{"asin": "1", "title": null, "text": "\ud83d", "new": true}',
    r"{'asin': '2', 'title': None, 'text': '\ud83d'}",
    r'{"asin": "3", "title": "\ud83d\ude00", "text": "\ude00"}',
  ]
  path.write_text("\n".join(lines))
  assert read(path, 0) == ([(1, "1", None), (2, "2", None), (3, "3", "\U0001f600")], [])
  assert records.first_field_names(path) == (1, ["asin", "title", "text", "new"])


def test_bad_lines_are_told_and_never_evaluated(tmp_path):
  ran = tmp_path / "ran"
  lines = [
    f"{{'asin': __import__('pathlib').Path({str(ran)!r}).touch()}}",
    f"{{'asin': '1', 'title': open({str(ran)!r}, 'w')}}",
    '{"asin": 5}',
    '{"title": "no key"}',
    "{'title': 'no key'}",
    '{"asin": "6", "title": "half',
    "[" * 100_000,
    "{" * 5_000,
    "{'asin': " + "-" * 100_000 + "1}",
    "{'asin': '7', 'title': " + "(" * 300 + ")" * 300 + "}",
    "{'asin': " + "9" * 5_000 + "}",
    "just text",
    "\0\0",
    '{"asin": "good"}',
  ]
  path = tmp_path / "meta"
  path.write_bytes("\n".join(lines).encode() + b'\n{"asin": "\xff"}\n')
  found, quoted = read(path)
  assert (14, "good", None) in found and len(found) == 1
  assert len(quoted) == 3 and not ran.exists()
  assert quoted[2] == f"{path}:3: Expected `str`, got `int` - at `$.asin`"


def test_rows_of_parquet(tmp_path):
  path = tmp_path / "named.json"
  pl.DataFrame({"title": ["a", None, "c"], "asin": ["1", "2", None], "x": [1, 2, 3]}).write_parquet(
    path
  )
  found, quoted = read(path)
  assert found == [(1, "1", "a"), (2, "2", None)]
  assert quoted == [f"{path}:3: Expected `str`, got `null` - at `$.asin`"]
  pl.DataFrame({"title": ["a"]}).write_parquet(path)
  with pytest.raises(UserError, match="no column 'asin'; it has 'title'"):
    read(path)
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(UserError, match="not a readable Parquet file"):
    read(path)


def test_damaged_parquet_is_one_line_and_nothing_more(tmp_path, capfd):
  """Polars' own reader aborts the process on some of these, and prints pages about others."""
  path, draw = tmp_path / "x.parquet", random.Random(0)
  pl.DataFrame({"title": ["a", None, "c"], "asin": ["1", "2", "3"]}).write_parquet(path)
  whole, refused = path.read_bytes(), 0
  for _ in range(150):
    content = bytearray(whole)
    for _ in range(4):
      content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)
    try:
      read(path)
    except UserError as error:
      refused += "not a readable Parquet file" in str(error)
  assert refused > 50
  assert capfd.readouterr().err == ""


def test_python_says_nothing_about_a_line_in_its_notation(tmp_path):
  """It would print the line as it is, with what a terminal obeys."""
  path = tmp_path / "a.json"
  path.write_bytes(b"{'asin': 'x', 'title': '\\\x1b'}\n")
  bad = compressed_lines.BadLines()
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    (row,) = records.read_json_fields(path, ["title"], bad)
  assert row == (1, {"title": "\\\x1b"}) and not said
