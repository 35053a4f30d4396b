"""Events and items have formats of their own, each named or recognized."""

import json

import polars as pl
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import amazon, formats
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.events import collect_events
from mmesid_jax.ingest.settings import SOURCES, default_settings

COLUMNS = default_settings().columns.to_dict()
REVIEW_2014 = {"reviewerID": "u", "asin": "a", "unixReviewTime": 1}
REVIEW_2023 = {"user_id": "u", "parent_asin": "a", "timestamp": 1}
EVENTS = {
  "amazon2014": {"a.json": json.dumps(REVIEW_2014)},
  "amazon2023": {
    "a.jsonl": json.dumps(REVIEW_2023),
    "a.csv": "user_id,parent_asin,rating,timestamp\nu,a,5.0,1\n",
  },
  "movielens": {
    "u.data": "1\t1\t5\t1\n",
    "ratings.dat": "1::1::5::1\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1,5,1\n",
  },
  "table": {
    "ratings.csv": "user,item,time\nu,i,1\n",
    "b.csv": "u,i,5,1\n",
    "a.json": json.dumps({"user": "u", "item": "i", "time": 1}),
    "b.json": "half {",
    "u.csv": '"user"\t"asin"\t"reviewerID"\n',
  },
}
ITEMS = {
  "amazon2014": {"a.json": "{'asin': 'a', 'title': 'A'}"},
  "amazon2018": {"a.json": '{"asin": "a", "category": []}'},
  "amazon2023": {"a.jsonl": '{"parent_asin": "a"}'},
  "movielens": {
    "u.item": "1|A||||0\n",
    "movies.dat": "1::A::B\n",
    "movies.csv": "movieId,title,genres\n",
  },
  "table": {
    "a.csv": "item,title\n",
    "b.json": '{"item": 1, "asin": "x"}',
    "c.json": '{"sku": 1, "title": "x"}',
  },
}


def cases(by_format):
  return [(name, *file) for name, files in by_format.items() for file in files.items()]


@pytest.mark.parametrize(("expected", "name", "text"), cases(EVENTS))
def test_formats_of_events(tmp_path, expected, name, text):
  path = tmp_path / name
  path.write_text(text)
  assert formats.events_format(path, "", COLUMNS) == expected
  assert {formats.events_format(path, source, COLUMNS) for source in SOURCES} == {*SOURCES}
  assert formats.events_format(path, "", {**COLUMNS, "user": "reviewerID"}) != "amazon2014"


@pytest.mark.parametrize(("expected", "name", "text"), cases(ITEMS))
def test_formats_of_items(tmp_path, expected, name, text):
  path = tmp_path / name
  path.write_text(text)
  assert formats.items_format(path, "", "table", COLUMNS) == expected
  assert formats.items_format(path, "amazon2018", "table", COLUMNS) == "amazon2018"


def test_a_column_of_the_settings_is_that_of_a_table(tmp_path):
  """Unless the events are Amazon's."""
  path = tmp_path / "a.json"
  path.write_text("{'asin': 'a', 'title': 'A'}")
  columns = {**COLUMNS, "item": "asin"}
  assert formats.items_format(path, "", "table", columns) == "table"
  assert formats.items_format(path, "", "amazon2014", columns) == "amazon2014"
  path.write_text("half {")
  assert formats.items_format(path, "", "amazon2014", columns) == "amazon2014"


def test_formats_of_parquet(tmp_path):
  path = tmp_path / "a"
  pl.DataFrame([REVIEW_2023]).write_parquet(path)
  assert formats.events_format(path, "", COLUMNS) == "amazon2023"
  assert formats.items_format(path, "", "table", COLUMNS) == "amazon2023"
  pl.DataFrame({"user": [1], "item": [1]}).write_parquet(path)
  assert formats.events_format(path, "", COLUMNS) == "table"
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(UserError, match="not a readable Parquet file"):
    formats.events_format(path, "", COLUMNS)


@pytest.mark.parametrize(
  ("source", "text"),
  [
    ("amazon2014", "A1YJEY40YUW4SE,0205616461,5.0,1369699200\n"),
    ("amazon2018", "0205616461,A1YJEY40YUW4SE,5.0,1369699200\n"),
    (
      "amazon2023",
      "user_id,parent_asin,rating,timestamp\nA1YJEY40YUW4SE,0205616461,5.0,1369699200000\n",
    ),
  ],
)
def test_ratings_of_amazon(tmp_path, source, text):
  path = tmp_path / "ratings_Beauty.csv"
  path.write_text(text)
  found = collect_events([(path, amazon.read_ratings(source, path, BadLines()))])
  assert found.user_keys == ["A1YJEY40YUW4SE"] and found.item_keys == ["0205616461"]
  assert found.time_E.tolist() == [1_369_699_200] and found.rating_E.tolist() == [5.0]
  if source != "amazon2023":
    (other,) = {"amazon2014", "amazon2018"} - {source}
    with pytest.raises(UserError, match=f"'0205616461' is an item .*try --config.source={source}"):
      list(amazon.read_ratings(other, path, BadLines()))
