import datetime
import math

import numpy as np
import pandas as pd
import polars as pl
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import movielens
from mmesid_jax.ingest.catalogue import Item
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.tables import Layout, event_rows, item_rows

EVENTS = {"user": "user", "item": "item", "time": "time", "rating": ""}
ITEMS = {"item": "item", "title": "title", "categories": "tags", "image": "picture"}


def read(source, layout, allowed=99):
  bad = BadLines(allowed)
  return [row[:3] for row in event_rows(source, layout, bad)], bad.quoted


def test_csv_with_quotes_a_mark_and_windows_lines(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(
    b'\xef\xbb\xbftime,"item",user,more\r\n5,"x, y",u,\r\n6,"line\nbreak",\xc3\xbc,1\r\n'
  )
  found, bad = read(path, Layout(EVENTS))
  assert found == [("u", "x, y", 5), ("ü", "line\nbreak", 6)] and not bad


def test_bad_rows_of_csv_name_their_line(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(
    b'user,item,time\nu,x,1\nu,x\nu,x,soon\n,x,3\n\xff,x,4\nu,"x"y,5\nv,x,6\nv,x,7,8\n'
  )
  found, bad = read(path, Layout(EVENTS))
  assert found == [("u", "x", 1), ("v", "x", 6)]
  assert [line.split(" ")[0] for line in bad] == [f"{path}:{n}:" for n in (3, 4, 5)]
  assert bad[0].endswith("2 fields; expected 3")
  counted = BadLines(99)
  list(event_rows(path, Layout(EVENTS), counted))
  assert counted.count == 6


def test_a_quote_that_is_not_closed_costs_every_line_that_it_takes(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(b'user,item,time\nu,x,1\n"u,x,2\n' + b"v,y,3\n" * 50)
  found, quoted = read(path, Layout(EVENTS))
  assert found == [("u", "x", 1)] and quoted[0].startswith(f"{path}:3: ")
  assert "row that begins on line 3" in quoted[2]
  path.write_bytes(path.read_bytes() + b"v,y,3\n" * 100_000)
  with pytest.raises(UserError, match="at least 107 bad lines"):
    list(event_rows(path, Layout(EVENTS), BadLines(6)))


def test_a_first_line_that_cannot_be_read_is_told_as_such(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes("user,item,time,größe\nu,x,1,2\n".encode("latin-1"))
  with pytest.raises(UserError, match="a.csv:1: not UTF-8 .*expected a first line that names"):
    read(path, Layout(EVENTS))
  path.write_text("user,item,time,item\nu,x,1,y\n")
  with pytest.raises(UserError, match="2 columns are called 'item'"):
    read(path, Layout(EVENTS))


def test_columns_by_name_tabs_and_files_without_a_first_line_of_names(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_text("who\twhat\nu\tx\n")
  layout = Layout({"user": "who", "item": "what", "time": ""})
  assert read(path, layout)[0] == [("u", "x", None)]
  with pytest.raises(UserError, match=r"no column 'when' \(columns.time\); it has 'who', 'what'"):
    read(path, Layout({"user": "who", "item": "what", "time": "when"}))
  path = tmp_path / "ratings_Beauty.csv"
  path.write_text("A3,0205616461,5.0,1369699200\n")
  layout = Layout({**EVENTS, "rating": "rating"}, header=("user", "item", "rating", "time"))
  assert list(event_rows(path, layout, BadLines())) == [("A3", "0205616461", 1_369_699_200, 5.0)]
  (tmp_path / "empty.csv").write_text("")
  with pytest.raises(UserError, match="empty.csv: is empty"):
    read(tmp_path / "empty.csv", Layout(EVENTS))


def test_parquet_with_numbers_and_dates(tmp_path):
  path = tmp_path / "a.parquet"
  day = datetime.datetime(1970, 1, 2)
  frame = pl.DataFrame({"user": [7, None, 8], "item": ["x", "y", "z"], "time": [day, day, None]})
  frame.write_parquet(path)
  found, bad = read(path, Layout(EVENTS))
  assert found == [("7", "x", 86_400)] and len(bad) == 2


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, dict])
def test_frames_in_memory(kind):
  columns = {"user": [7, 7], "item": ["x", "y"], "time": [datetime.datetime(1970, 1, 2)] * 2}
  found, bad = read(kind(columns), Layout(EVENTS))
  assert found == [("7", "x", 86_400), ("7", "y", 86_400)] and not bad


def test_arrays_and_gaps_in_frames():
  frame = {"user": np.array([1.0, math.nan]), "item": np.array([1, 2]), "time": np.array([5, 6])}
  found, bad = read(frame, Layout(EVENTS))
  assert found == [("1", "1", 5)]
  assert bad == ["row:2: None as a key; expected a text or a whole number"]
  with pytest.raises(UserError, match="the columns are not of one length"):
    read({"user": [1], "item": [1, 2], "time": [5, 6]}, Layout(EVENTS))
  with pytest.raises(UserError, match="the data frame: no column 'time'"):
    read(pd.DataFrame({"user": [1], "item": [1]}), Layout(EVENTS))


def test_gaps_of_every_kind():
  frame = pd.DataFrame(
    {
      "user": pd.array([1, None, 3], "Int64"),
      "item": pd.array(["x", "y", None], "string"),
      "time": [5, 6, 7],
      "stars": pd.array([None, 2, 3], "Int64"),
    }
  )
  rows = list(event_rows(frame, Layout({**EVENTS, "rating": "stars"}), BadLines(2)))
  assert [row[:3] for row in rows] == [("1", "x", 5)] and math.isnan(rows[0][3])


def test_categories_of_every_kind():
  columns = {"item": ["a", "b", "c", "d", "e"], "title": [1984, None, "x", "y", "z"]}
  columns |= {"tags": [[["x", "y"], ["z"]], [0, 5], 7, None, {"a": 1}]}
  columns |= {"picture": [["u", "v"], "w", None, "", []]}
  bad = BadLines(1)
  assert list(item_rows(columns, Layout(ITEMS), bad)) == [
    Item("a", "1984", categories=["x", "y"], images=["u", "v"]),
    Item("b", categories=["0", "5"], images=["w"]),
    Item("c", "x", categories=["7"]),
    Item("d", "y"),
  ]
  assert "a dict where a text or a list" in bad.quoted[0]


def test_items_of_tables(tmp_path):
  path = tmp_path / "items.csv"
  path.write_text("item,title,tags,picture\n1, A ,x| y|,p.jpg\n2,,,\n")
  assert list(item_rows(path, Layout(ITEMS), BadLines())) == [
    Item("1", "A", categories=["x", "y"], images=["p.jpg"]),
    Item("2"),
  ]
  frame = pl.DataFrame({"item": [1], "title": ["A"], "tags": [["x", "y"]], "picture": [None]})
  assert list(item_rows(frame, Layout(ITEMS), BadLines())) == [
    Item("1", "A", categories=["x", "y"])
  ]


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n"),
    ("ratings.dat", "1::31::2.5::1260759144\n"),
    ("u.data", "1\t31\t2.5\t1260759144\n"),
  ],
)
def test_movielens(tmp_path, name, text):
  path = tmp_path / name
  path.write_text(text)
  layout = movielens.file_layout(path, of_items=False)
  assert list(event_rows(path, layout, BadLines())) == [("1", "31", 1_260_759_144, 2.5)]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])  # of 1M and of 10M
def test_movies_of_movielens(tmp_path, encoding):
  path = tmp_path / "movies.dat"
  path.write_bytes('1::Misérables, "Les" (1995)::Drama|Musical\n'.encode(encoding))
  layout = movielens.file_layout(path, of_items=True)
  expected = [Item("1", 'Misérables, "Les" (1995)', categories=["Drama", "Musical"])]
  assert list(item_rows(path, layout, BadLines())) == expected
  with pytest.raises(UserError, match="expected MovieLens's ratings.csv, ratings.dat or u.data"):
    movielens.file_layout(tmp_path / "links.txt", of_items=False)
