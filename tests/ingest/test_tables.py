import datetime
import gzip
import json
import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
import zstandard

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import movielens
from mmesid_jax.ingest.catalogue import Item
from mmesid_jax.ingest.compressed_lines import BadLines
from mmesid_jax.ingest.events import NANO, collect_events
from mmesid_jax.ingest.tables import TableLayout, event_rows, item_rows

EVENTS = {"user": "user", "item": "item", "time": "time", "rating": ""}
ITEMS = {"item": "item", "title": "title", "categories": "tags", "image": "picture"}


def read(source, layout, allowed=99):
  """(user, item, seconds) of every event, and the bad lines that are quoted."""
  bad = BadLines(allowed)
  found = collect_events([("the source", event_rows(source, layout, bad))])
  users, items = (
    [keys[n] for n in x_E]
    for keys, x_E in ((found.user_keys, found.user_E), (found.item_keys, found.item_E))
  )
  times = [None] * len(found) if found.time_E is None else found.time_E.tolist()
  return [*zip(users, items, times, strict=True)], bad.quoted


def test_csv_with_quotes_a_mark_and_windows_lines(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(
    b'\xef\xbb\xbftime,"item",user,more\r\n5,"x, y",u,\r\n6,"line\nbreak",\xc3\xbc,1\r\n'
  )
  found, bad = read(path, TableLayout(EVENTS))
  assert found == [("u", "x, y", 5), ("ü", "line\nbreak", 6)] and not bad


def test_bad_rows_of_csv_name_their_line(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(
    b'user,item,time\nu,x,1\nu,x\nu,x,soon\n,x,3\n\xff,x,4\nu,"x"y,5\nv,x,6\nv,x,7,8\n'
  )
  found, bad = read(path, TableLayout(EVENTS))
  assert found == [("u", "x", 1), ("v", "x", 6)]
  assert [line.split(" ")[0] for line in bad] == [f"{path}:{n}:" for n in (3, 4, 5)]
  assert bad[0].endswith("2 fields; expected 3")
  counted = BadLines(99)
  list(event_rows(path, TableLayout(EVENTS), counted))
  assert counted.count == 6


@pytest.mark.parametrize("titles", [('"Heroes', 'the "Palace"'), ('"Heroes', '12"')])
def test_quotation_marks_in_tsv_are_characters(tmp_path, titles):
  path = tmp_path / "a.tsv"
  path.write_text("item\ttitle\n" + "".join(f"{n}\t{title}\n" for n, title in enumerate(titles)))
  expected = [Item(str(n), title) for n, title in enumerate(titles)]
  columns = {"item": "item", "title": "title"}
  assert list(item_rows(path, TableLayout(columns), BadLines())) == expected
  named = path.rename(tmp_path / "a.txt")
  layout = TableLayout(columns, "\\t", quoting="none")
  assert list(item_rows(named, layout, BadLines())) == expected
  bad = BadLines(99)
  rows = list(item_rows(named, TableLayout(columns, "\t", quoting="double"), bad))
  assert rows != expected and (bad.quoted or bad.first_long_row == f"{named}:2 to 3")


def test_marks_in_fields_are_doubled_or_escaped(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('item;title\n1;"a ""b""; c"\n"2";"d \\"e\\"; \\\\f"\n')
  layout = TableLayout({"item": "item", "title": "title"}, ";", quoting="backslash")
  assert list(item_rows(path, layout, BadLines())) == [
    Item("1", 'a "b"; c'),
    Item("2", 'd "e"; \\f'),
  ]
  with pytest.raises(UserError, match=r"a.csv:3: .*begins on line 3 \(see --config.quoting\)"):
    bad = BadLines()
    list(item_rows(path, TableLayout(layout.columns, ";"), bad))
    bad.check()


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "gbk"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_files_of_other_encodings(tmp_path, encoding, name):
  path, rows = tmp_path / name, [("1", "中" if encoding == "gbk" else "Café")]
  text = "item,title\n" + "".join(f"{item},{title}\n" for item, title in rows)
  if name == "a.jsonl":
    text = "".join(json.dumps({"item": i, "title": t}, ensure_ascii=False) + "\n" for i, t in rows)
  compress = gzip.compress if name.endswith(".gz") else bytes
  path.write_bytes(compress(text.encode(encoding)))
  layout = TableLayout({"item": "item", "title": "title"}, encoding=encoding)
  assert list(item_rows(path, layout, BadLines())) == [Item(*row) for row in rows]
  if encoding in ("utf-16", "utf-32"):  # with a mark, which is enough
    layout = TableLayout(layout.columns)
    assert list(item_rows(path, layout, BadLines())) == [Item(*row) for row in rows]


def test_lines_end_where_the_encoding_ends_them(tmp_path):
  """The bytes of U+0A0A and U+0D0A hold that of a line end."""
  path = tmp_path / "a.csv"
  path.write_bytes("item,title\n1,\u0a0a\u0d0a\n2,b\n".encode("utf-16"))
  found = list(item_rows(path, TableLayout({"item": "item", "title": "title"}), BadLines()))
  assert found == [Item("1", "\u0a0a\u0d0a"), Item("2", "b")]


def test_bytes_that_an_encoding_lacks_are_named(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(b"item,title\n1,\x81\n2,\xe9\n")
  bad = BadLines(9)
  columns = {"item": "item", "title": "title"}
  layout = TableLayout(columns, encoding="cp1252")
  assert list(item_rows(path, layout, bad)) == [Item("2", "é")]
  (line,) = bad.quoted
  assert line.startswith(f"{path}:2: not cp1252 (byte 0x81 at 2); name it by --config.encoding")
  path.write_bytes("item,title\n1,a\n".encode("utf-16")[:-1])
  with pytest.raises(UserError, match="a.csv: after line 1, not UTF-16 .*--config.encoding"):
    list(item_rows(path, TableLayout(columns), BadLines()))


def test_a_quote_that_is_not_closed_costs_every_line_that_it_takes(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(b'user,item,time\nu,x,1\n"u,x,2\n' + b"v,y,3\n" * 50)
  found, quoted = read(path, TableLayout(EVENTS))
  assert found == [("u", "x", 1)] and quoted[0].startswith(f"{path}:3: ")
  assert "row that begins on line 3" in quoted[2]
  path.write_bytes(path.read_bytes() + b"v,y,3\n" * 100_000)
  with pytest.raises(UserError, match="at least 107 bad lines"):
    list(event_rows(path, TableLayout(EVENTS), BadLines(6)))


def test_a_first_line_that_cannot_be_read_is_told_as_such(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes("user,item,time,größe\nu,x,1,2\n".encode("latin-1"))
  with pytest.raises(UserError, match="a.csv:1: not UTF-8 .*expected a first line that names"):
    read(path, TableLayout(EVENTS))
  path.write_text("user,item,time,item\nu,x,1,y\n")
  with pytest.raises(UserError, match="2 columns are called 'item'"):
    read(path, TableLayout(EVENTS))


def test_columns_by_name_tabs_and_files_without_a_first_line_of_names(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_text("who\twhat\nu\tx\n")
  layout = TableLayout({"user": "who", "item": "what", "time": ""})
  assert read(path, layout)[0] == [("u", "x", None)]
  with pytest.raises(UserError, match=r"no column 'when' \(columns.time\); it has 'who', 'what'"):
    read(path, TableLayout({"user": "who", "item": "what", "time": "when"}))
  path = tmp_path / "ratings_Beauty.csv"
  path.write_text("A3,0205616461,5.0,1369699200\n")
  layout = TableLayout({**EVENTS, "rating": "rating"}, header=("user", "item", "rating", "time"))
  assert list(event_rows(path, layout, BadLines())) == [
    ("A3", "0205616461", 1_369_699_200 * NANO, 5.0)
  ]
  path.write_text("User, item,rating,time\nA3,0205616461,5.0,1369699200\n")
  with pytest.raises(UserError, match="Beauty.csv:1: holds the names of the columns; leave --conf"):
    list(event_rows(path, layout, BadLines(9)))
  (tmp_path / "empty.csv").write_text("")
  with pytest.raises(UserError, match="empty.csv: is empty"):
    read(tmp_path / "empty.csv", TableLayout(EVENTS))


def test_parquet_with_numbers_and_dates(tmp_path):
  path = tmp_path / "a.parquet"
  day = datetime.datetime(1970, 1, 2)
  frame = pl.DataFrame({"user": [7, None, 8], "item": ["x", "y", "z"], "time": [day, day, None]})
  frame.write_parquet(path)
  found, bad = read(path, TableLayout(EVENTS))
  assert found == [("7", "x", 86_400)] and len(bad) == 2


def test_parquet_keeps_nanoseconds(tmp_path):
  path = tmp_path / "a.parquet"
  times = pd.to_datetime([1_433_221_337_900_000_001, 1_433_221_337_900_000_000], unit="ns")
  pd.DataFrame({"user": "u", "item": ["x", "y"], "time": times}).to_parquet(path)
  found = collect_events([("a", event_rows(path, TableLayout(EVENTS), BadLines()))])
  assert found.time_E.tolist() == [1_433_221_337] * 2
  assert found.nano_E.tolist() == [900_000_001, 900_000_000]


JSON_LINES = (  # a byte-order mark, numbers as keys, times of several kinds, Python's notation
  b'\xef\xbb\xbf{"stars": 3.5, "who": "u", "date": "2018-07-07 22:09:11", "what": "x"}\n'
  b'{"what": 7, "who": 8, "date": 1531087751000, "text": {"a": [1]}}\n\n'
  b"{u'who': u'v', u'what': u'10', u'date': u'2017-12-17', u'stars': None}\n"
)
JSON_COLUMNS = {"user": "who", "item": "what", "time": "date", "rating": "stars"}


@pytest.mark.parametrize(
  "name", ["a.json", "a.jsonl.gz", "a.NDJSON.zst", "reviews", "reviews.2024.gz", "a.log"]
)
def test_json_lines_by_the_names_of_their_fields(tmp_path, name):
  path = tmp_path / name
  compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
  path.write_bytes(compress(JSON_LINES))
  rows = list(event_rows(path, TableLayout(JSON_COLUMNS), BadLines()))
  assert read(path, TableLayout(JSON_COLUMNS))[0] == [
    ("u", "x", 1_531_001_351),
    ("8", "7", 1_531_087_751),
    ("v", "10", 1_513_468_800),
  ]
  assert rows[0][3] == 3.5 and math.isnan(rows[1][3]) and math.isnan(rows[2][3])


def test_json_lines_and_csv_give_the_same_events(tmp_path):
  """Times, keys and ratings follow one rule; what is in the name of a file decides."""
  rows = [("u", "1", "2014-07-23T10:00:00+02:00", "5"), ("é", "2", "1400000000000", "")]
  names = ("user", "item", "time", "rating")
  lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
  (tmp_path / "a.json").write_text("\n".join(lines))
  (tmp_path / "a.csv").write_text("\n".join(map(",".join, [names, *rows])))
  layout = TableLayout(dict(zip(names, names, strict=True)))
  (first, second), expected = (
    list(event_rows(tmp_path / name, layout, BadLines())) for name in ("a.json", "a.csv")
  )
  assert [first, second[:3]] == [expected[0], expected[1][:3]] and math.isnan(second[3])
  (tmp_path / "b.csv").write_text("{user,item,time\nu,x,1\n")
  assert read(tmp_path / "b.csv", TableLayout({**EVENTS, "user": "{user"}))[0] == [("u", "x", 1)]


def test_bad_lines_of_json_name_their_line(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(
    '{"user": "u", "item": "x", "time": 1}\n{"user": {"id": 1}, "item": "x", "time": 1}\n'
    '{"user": "u", "time": 1}\n[1]\n{"user": "u", "item": "x", "time": [1]}\nuser,item,time\n'
    '{"user": "u", "item": "y", "time": null}\n{"user": "u", "item": "z", "time": 2}\n'
  )
  bad = BadLines(99)
  rows = event_rows(path, TableLayout(EVENTS), bad)
  assert [row[1] for row in rows] == ["x", "z"] and bad.count == 6
  assert [line.split(" ")[0] for line in bad.quoted] == [f"{path}:{n}:" for n in (2, 3, 4)]
  assert bad.quoted[0].endswith("{'id': 1} as a key; expected a text or a whole number")
  assert bad.quoted[1].endswith("no field 'item' (columns.item)")


def test_wrong_names_of_fields_are_one_line(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"user_id": "u", "item": "x", "time": 1}\n' * 2)
  with pytest.raises(
    UserError,
    match=r"a.jsonl:1: no field 'user' \(columns.user\); it has 'user_id', 'item', 'time'",
  ):
    list(event_rows(path, TableLayout(EVENTS), BadLines()))
  columns = {"user": "user_id", "item": "item", "time": "time", "rating": "star"}
  with pytest.raises(UserError, match=r"a.jsonl: no field 'star' \(columns.rating\); it has 'us"):
    list(event_rows(path, TableLayout(columns), BadLines()))
  path.write_text("\n")
  with pytest.raises(UserError, match="a.jsonl: is empty; expected one JSON object per line"):
    list(event_rows(path, TableLayout(EVENTS), BadLines()))


def test_items_of_json_lines(tmp_path):
  path = tmp_path / "items.jsonl"
  path.write_text(
    '{"item": 1, "title": " A ", "tags": [["x", "y"], ["z"]], "picture": "p.jpg"}\n'
    '{"item": "2", "tags": "x| y"}\n{"item": 3, "title": {"en": "C"}}\n'
  )
  bad = BadLines(1)
  assert list(item_rows(path, TableLayout(ITEMS), bad)) == [
    Item("1", "A", categories=["x", "y"], images=["p.jpg"]),
    Item("2", categories=["x", "y"]),
  ]
  assert bad.quoted == [f"{path}:3: title is a dict; expected a text"]


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, dict])
def test_frames_in_memory(kind):
  columns = {"user": [7, 7], "item": ["x", "y"], "time": [datetime.datetime(1970, 1, 2)] * 2}
  found, bad = read(kind(columns), TableLayout(EVENTS))
  assert found == [("7", "x", 86_400), ("7", "y", 86_400)] and not bad


def test_arrays_and_gaps_in_frames():
  frame = {"user": np.array([1.0, math.nan]), "item": np.array([1, 2]), "time": np.array([5, 6])}
  found, bad = read(frame, TableLayout(EVENTS))
  assert found == [("1", "1", 5)]
  assert bad == ["row:2: None as a key; expected a text or a whole number"]
  numbers = [np.int64(5), np.int32(5), np.float64(5), np.float32(5), np.uint8(5)]
  found, bad = read({"user": [1] * 5, "item": numbers, "time": numbers}, TableLayout(EVENTS))
  assert found == [("1", "5", 5)] * 5 and not bad
  with pytest.raises(UserError, match="the columns are not of one length"):
    read({"user": [1], "item": [1, 2], "time": [5, 6]}, TableLayout(EVENTS))
  for column in (3, None, "ab", {0: 1}, np.array(5)):
    with pytest.raises(
      UserError, match="the column 'item' is .*; expected a list with a value a r"
    ):
      read({"user": [1, 2], "item": column, "time": [5, 6]}, TableLayout(EVENTS))
  with pytest.raises(UserError, match="the data frame: no column 'time'"):
    read(pd.DataFrame({"user": [1], "item": [1]}), TableLayout(EVENTS))


def test_gaps_of_every_kind():
  frame = pd.DataFrame(
    {
      "user": pd.array([1, None, 3], "Int64"),
      "item": pd.array(["x", "y", None], "string"),
      "time": [5, 6, 7],
      "stars": pd.array([None, 2, 3], "Int64"),
    }
  )
  rows = list(event_rows(frame, TableLayout({**EVENTS, "rating": "stars"}), BadLines(2)))
  assert [row[:2] for row in rows] == [("1", "x")] and math.isnan(rows[0][3])


def test_categories_of_every_kind():
  columns = {"item": ["a", "b", "c", "d", "e"], "title": [1984, None, "x", "y", "z"]}
  columns |= {"tags": [[["x", "y"], ["z"]], [0, 5], 7, None, {"a": 1}]}
  columns |= {"picture": [["u", "v"], "w", None, "", []]}
  bad = BadLines(1)
  assert list(item_rows(columns, TableLayout(ITEMS), bad)) == [
    Item("a", "1984", categories=["x", "y"], images=["u", "v"]),
    Item("b", categories=["0", "5"], images=["w"]),
    Item("c", "x", categories=["7"]),
    Item("d", "y"),
  ]
  assert "a dict where a text or a list" in bad.quoted[0]


def test_items_of_tables(tmp_path):
  path = tmp_path / "items.csv"
  path.write_text("item,title,tags,picture\n1, A ,x| y|,p.jpg\n2,,,\n")
  assert list(item_rows(path, TableLayout(ITEMS), BadLines())) == [
    Item("1", "A", categories=["x", "y"], images=["p.jpg"]),
    Item("2"),
  ]
  frame = pl.DataFrame({"item": [1], "title": ["A"], "tags": [["x", "y"]], "picture": [None]})
  assert list(item_rows(frame, TableLayout(ITEMS), BadLines())) == [
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
  assert list(event_rows(path, layout, BadLines())) == [("1", "31", 1_260_759_144 * NANO, 2.5)]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])  # of 1M and of 10M
def test_movies_of_movielens(tmp_path, encoding):
  path = tmp_path / "movies.dat"
  path.write_bytes('1::Misérables, "Les" (1995)::Drama|Musical\n'.encode(encoding))
  layout = movielens.file_layout(path, of_items=True)
  expected = [Item("1", 'Misérables, "Les" (1995)', categories=["Drama", "Musical"])]
  assert list(item_rows(path, layout, BadLines())) == expected
  with pytest.raises(UserError, match="expected MovieLens's ratings.csv, ratings.dat or u.data"):
    movielens.file_layout(tmp_path / "links.txt", of_items=False)


def test_movies_of_100k(tmp_path):
  path = tmp_path / "u.item"
  start = '2|Café "Noir" (1995)|01-Jan-1995||http://x|0|1|0'
  whole = [start + "|0" * 15 + "|1", "3|B (1996)|||" + "|0" * 19, "4|C|||" + "|1" + "|0" * 18]
  path.write_bytes("\n".join(whole).encode("latin-1"))
  layout = movielens.file_layout(path, of_items=True)
  assert list(item_rows(path, layout, BadLines())) == [
    Item("2", 'Café "Noir" (1995)', categories=["Action", "Western"]),
    *(Item("3", "B (1996)"), Item("4", "C")),
  ]
  path.write_bytes(start.encode("latin-1"))  # cut, as in some copies
  layout = movielens.file_layout(path, of_items=True)
  assert list(item_rows(path, layout, BadLines()))[0].categories == ["Action"]
  with pytest.raises(UserError, match="expected MovieLens's movies.csv, movies.dat or u.item"):
    movielens.file_layout(tmp_path / "u.genre", of_items=True)


def test_only_texts_and_numbers_are_texts(tmp_path):
  path = tmp_path / "items.jsonl"
  lines = ['{"item": 1, "tags": [[["a"], {"b": 1}]]}', '{"item": 2, "title": true}']
  lines += ['{"item": 3, "tags": [false]}', '{"item": 4, "tags": ["a", 5, null, 1.5]}']
  path.write_text("\n".join(lines))
  bad = BadLines(3)
  columns = {"item": "item", "title": "title", "categories": "tags"}
  assert [*item_rows(path, TableLayout(columns), bad)] == [
    Item("4", categories=["a", "5", "1.5"])
  ] and bad.count == 3
  assert "a list where a text is expected" in bad.quoted[0] and "title is a bool" in bad.quoted[1]


def test_half_of_a_surrogate_pair_is_a_bad_row(tmp_path):
  path = tmp_path / "items.jsonl"
  path.write_text(r'{"item": "a", "title": "\ud83d"}' + "\n" + r'{"item": "b\udc00"}')
  for source, name in (
    (path, str(path)),
    ({"item": ["a", "b\udc00"], "title": ["\ud83d", ""]}, "row"),
  ):
    bad = BadLines(2)
    assert not [*item_rows(source, TableLayout({"item": "item", "title": "title"}), bad)]
    assert bad.quoted[0].startswith(f"{name}:1: title holds half of a surrogate pair; write")
    assert bad.quoted[1].startswith(f"{name}:2: 'b\\udc00' as a key holds half of a surrogate pair")


@pytest.mark.parametrize("kind", ["parquet", "pandas", "polars"])
def test_float32_keys_that_cannot_be_told_apart_are_bad(tmp_path, kind):
  items = pl.Series([2.0**24 - 1, 2.0**24, 3.0], dtype=pl.Float32)
  frame = pl.DataFrame({"user": ["u"] * 3, "item": items, "time": [1, 2, 3]})
  source = {"pandas": frame.to_pandas, "polars": lambda: frame, "parquet": lambda: None}[kind]()
  if kind == "parquet":
    source = tmp_path / "a.parquet"
    frame.write_parquet(source)
  found, bad = read(source, TableLayout(EVENTS))
  assert [row[1] for row in found] == ["16777215", "3"] and len(bad) == 1


@pytest.mark.parametrize("kind", [pl.Date, pl.Datetime("us"), pl.Datetime("ms", "UTC")])
def test_dates_that_python_lacks_are_bad_lines(tmp_path, kind):
  path = tmp_path / "a.parquet"
  far = pl.Series([2, 2**31 - 1 if kind == pl.Date else 2**60], dtype=pl.Int64)
  far = far.cast(pl.Int32).cast(kind) if kind == pl.Date else far.cast(kind)
  pl.DataFrame({"user": ["u", "u"], "item": ["x", "y"], "time": far}).write_parquet(path)
  found, bad = read(path, TableLayout(EVENTS))
  assert [row[:2] for row in found] == [("u", "x")] and len(bad) == 1
