"""Raw files to a dataset folder: real samples against pandas, a round trip, mistakes, fuzz."""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import commands
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesid_jax.data import dataset
from mmesid_jax.data.folder.keys import item_keys, user_keys
from mmesid_jax.errors import UserError
from mmesid_jax.ingest import from_dataframe, prepared_folder
from mmesid_jax.ingest.settings import default_settings

SHARED = pathlib.Path(__file__).parents[3] / "shared/data"
RAW = SHARED / "raw"
needs_raw = pytest.mark.skipif(not RAW.is_dir(), reason="needs samples of Amazon's raw files")
NO_FILTERS = {"core.user": 0, "core.item": 0, "min_length": 0}


def prepare(output, **changes) -> dict:
  """The statistics; keys with dots are given as a dictionary under `also`."""
  config = default_settings()
  also = changes.pop("also", {})
  changes = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in changes.items()}
  config.update_from_flattened_dict({**changes, **also})
  prepared_folder.prepare_folder(config, output)
  return json.loads((output / "statistics.json").read_text())


def sequences_by_key(folder) -> dict[str, list[str]]:
  found, keys = dataset.read_dataset(folder), item_keys(folder)
  rows = [found.sequence(u).tolist() for u in range(len(found))]
  return {
    user: [keys[i - 1] for i in row] for user, row in zip(user_keys(folder), rows, strict=True)
  }


def by_pandas(path, users: int, items: int) -> dict[str, list[str]]:
  """An independent script: without exact duplicates, k-core, by time, ties as in the file."""
  frame = pd.read_json(path, lines=True)
  frame = frame.drop_duplicates(["reviewerID", "asin", "unixReviewTime"])
  while True:
    before = len(frame)
    frame = frame[frame.groupby("reviewerID")["asin"].transform("size") >= users]
    frame = frame[frame.groupby("asin")["reviewerID"].transform("size") >= items]
    if len(frame) == before:
      break
  frame = frame.sort_values("unixReviewTime", kind="stable")
  return frame.groupby("reviewerID", sort=False)["asin"].agg(list).to_dict()


@needs_raw
def test_gift_cards_of_2018(tmp_path):
  reviews, metadata = RAW / "reviews_2018_Gift_Cards_5.json", RAW / "meta_2018_Gift_Cards.json"
  found = prepare(tmp_path / "out", source="amazon2018", events=reviews, metadata=metadata)
  expected = by_pandas(reviews, 5, 5)
  assert sequences_by_key(tmp_path / "out") == expected
  kept = {item for row in expected.values() for item in row}
  frame = pd.read_json(metadata, lines=True).drop_duplicates("asin").set_index("asin")
  assert found["steps"]["read"] == {"events": 2966, "users": 457, "items": 148}
  assert found["dataset"]["users"] == len(expected) and found["dataset"]["items"] == len(kept)
  assert found["dataset"]["items with title"] == (frame.loc[list(kept), "title"] != "").sum()
  pictures = frame.loc[list(kept), "imageURLHighRes"].map(len) > 0
  assert found["dataset"]["items with image"] == pictures.sum()
  lines = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
  assert all(line["brand"] == (frame.loc[line["key"], "brand"] or None) for line in lines)
  times = np.load(tmp_path / "out/times.npy")
  offsets = dataset.read_dataset(tmp_path / "out").offsets
  starts = np.isin(np.arange(1, len(times)), offsets)
  assert len(times) == offsets[-1] and (np.diff(times)[~starts] >= 0).all()


@needs_raw
def test_the_sample_of_2014(tmp_path):
  reviews, metadata = RAW / "reviews_2014_sample.json", RAW / "meta_2014_sample.json"
  options = {"source": "amazon2014", "events": reviews}
  with pytest.raises(UserError, match="describes none of the items"):  # of another category
    prepare(tmp_path / "out", **options, metadata=metadata, also=NO_FILTERS)
  found = prepare(tmp_path / "out", **options, also=NO_FILTERS)
  assert sequences_by_key(tmp_path / "out") == by_pandas(reviews, 0, 0)
  assert found["dataset"]["users"] == 259 and found["dataset"]["evaluated users"] == 0
  with pytest.raises(UserError, match="after the step 'k-core: 5 events per user, 5 per item'"):
    prepare(tmp_path / "core", **options)
  assert not (tmp_path / "core").exists() and os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs Amazon Beauty")
def test_beauty_written_as_raw_events_comes_back(tmp_path):
  beauty = dataset.read_dataset(SHARED / "beauty")
  lines = []
  for u in range(len(beauty)):
    for place, item in enumerate(beauty.sequence(u).tolist()):
      lines.append((place, {"reviewerID": f"u{u}", "asin": f"i{item}", "unixReviewTime": place}))
  lines.sort(key=lambda line: line[0])  # as raw files are: not by user
  raw = tmp_path / "raw.json.gz"
  raw.write_bytes(gzip.compress("\n".join(json.dumps(x) for _, x in lines).encode(), 1))
  prepare(tmp_path / "out", source="amazon2014", events=raw, also={"core.item": 0})
  expected = {f"u{u}": [f"i{i}" for i in beauty.sequence(u)] for u in range(len(beauty))}
  assert sequences_by_key(tmp_path / "out") == expected


def test_ties_keep_the_order_of_the_files(tmp_path):
  for name, items in (("a", "xy"), ("b", "zwx")):
    rows = "".join(f"u,{item},7\n" for item in items)
    (tmp_path / f"{name}.csv").write_text(f"user,item,time\n{rows}")
  events = f"{tmp_path / 'a.csv'}, {tmp_path / 'b.csv'}"
  found = prepare(tmp_path / "out", events=events, also=NO_FILTERS)
  assert sequences_by_key(tmp_path / "out") == {"u": ["x", "y", "z", "w"]}  # x is there once
  assert found["dataset"]["events at the same time as the user's previous event"] == 3
  prepare(tmp_path / "all", events=events, duplicates="keep", also=NO_FILTERS)
  assert sequences_by_key(tmp_path / "all") == {"u": ["x", "y", "z", "w", "x"]}


def test_ties_by_a_hash_are_the_same_for_any_order_of_the_file(tmp_path, capsys):
  rows = [f"{u},{i},{7 if i < 'e' else 9}" for u in "uvw" for i in "abcdef"] + ["x,a,1", "x,b,2"]
  rows += ["y,a,1", "y,b,1", "y,c,2"]  # the validation item alone ties
  found = {}
  for name, order in (("a", rows), ("b", rows[::-1])):
    (tmp_path / f"{name}.csv").write_text("user,item,time\n" + "\n".join(order))
    for ties in ("file", "hash"):
      statistics = prepare(
        tmp_path / f"{name}-{ties}", events=tmp_path / f"{name}.csv", ties=ties, also=NO_FILTERS
      )
      found[name, ties] = sequences_by_key(tmp_path / f"{name}-{ties}")
  assert found["a", "file"]["u"] == [*"abcdef"] and found["b", "file"]["u"] == [*"dcbafe"]
  assert found["a", "hash"] == found["b", "hash"] != found["a", "file"]
  assert len({"".join(found["a", "hash"][user]) for user in "uvw"}) > 1  # not one order for all
  assert all(sorted(found["a", "hash"][u][:4]) == [*"abcd"] for u in "uvw")
  figures = statistics["dataset"]
  assert figures["events at the same time as the user's previous event"] == 3 * 4 + 1
  assert figures["users whose test item is at the same time as the item before it"] == 3
  assert figures["users whose validation item is at the same time as the item before it"] == 1
  said = capsys.readouterr().out
  assert (
    "of 4 evaluated users, this is so for the test item of 3 and the validation item of 1" in said
  )
  assert "--config.ties=hash breaks them" in (tmp_path / "a-file/report.html").read_text()


def test_rows_over_several_lines_are_counted_and_files_may_be_in_latin_1(tmp_path, capsys):
  (tmp_path / "a.csv").write_bytes(b'user,item,time,title\nu,x,1,"Caf\xe9\nu,y,2,12"\nu,z,3,c\n')
  also = {**NO_FILTERS, "encoding": "latin-1"}
  options = {"events": tmp_path / "a.csv", "metadata": tmp_path / "a.csv"}
  found = prepare(tmp_path / "out", **options, also=also)
  assert found["rows that span several lines"]["count"] == 2  # of events, and of items
  assert f"the first {tmp_path / 'a.csv'}:2 to 3; if quotation marks" in capsys.readouterr().out
  found = prepare(tmp_path / "none", **options, quoting="none", also=also)
  assert found["dataset"]["events"] == 3 and found["rows that span several lines"]["count"] == 0
  assert '"title": "\\"Café"' in (tmp_path / "none/items.jsonl").read_text()


def test_steps_that_drop_most_events_say_what_keeps_them(tmp_path, capsys):
  rows = [f"{u},{i},{n}" for u in "uvw" for n, i in enumerate("abc")] + ["x,a,1"] * 20
  (tmp_path / "a.csv").write_text("user,item,time\n" + "\n".join(rows))
  says = (
    r"5 per item'; before it there were 10 events.*; --config.core.user=3 --config.core.item=3 "
  )
  with pytest.raises(UserError, match=says + "keeps 9$"):
    prepare(tmp_path / "out", events=tmp_path / "a.csv")
  found = prepare(tmp_path / "out", events=tmp_path / "a.csv", also=NO_FILTERS)
  assert found["advice"] == [
    "The step 'without duplicates (exact)' left 10 of 29 events; they have the user, item and time "
    "of an earlier one; --config.duplicates=keep keeps all."
  ]
  assert found["advice"][0] in capsys.readouterr().out
  assert "left 10 of 29 events" in (tmp_path / "out/report.html").read_text()
  changes = {"core.item": 0, "core.user": 0, "min_length": 4}
  with pytest.raises(UserError, match="4 users have fewer; a lower --config.min_length"):
    prepare(tmp_path / "none", events=tmp_path / "a.csv", also=changes)


def test_held_out_items_that_repeat_are_counted(tmp_path, capsys):
  rows = {"u": "abca", "v": "aabc", "w": "abb", "x": "aba", "y": "aa", "z": "abc"}
  lines = [f"{u},{i},{n}" for u, items in rows.items() for n, i in enumerate(items)]
  (tmp_path / "a.csv").write_text("user,item,time\n" + "\n".join(lines))
  found = prepare(tmp_path / "out", events=tmp_path / "a.csv", also=NO_FILTERS)["dataset"]
  assert found["users whose test item is in their own history"] == 3  # u, w, x; y is too short
  assert found["users whose validation item is in their own history"] == 0
  said = capsys.readouterr().out
  assert "3 of 5 (60.0%) of the test items" in said and "unmasked/nDCG@10" in said
  assert "of the test items" in (tmp_path / "out/report.html").read_text()
  (tmp_path / "b.csv").write_text("user,item,time\nu,a,1\nu,b,2\nu,c,3\n")
  prepare(tmp_path / "none", events=tmp_path / "b.csv", also=NO_FILTERS)
  assert "met again" not in capsys.readouterr().out


def test_a_table_without_times_is_in_order(tmp_path):
  (tmp_path / "a.csv").write_text("user,item\nu,b\nu,a\nv,a\nu,c\n")
  prepare(tmp_path / "out", events=tmp_path / "a.csv", also={**NO_FILTERS, "columns.time": ""})
  assert sequences_by_key(tmp_path / "out") == {"u": ["b", "a", "c"], "v": ["a"]}
  assert not (tmp_path / "out/times.npy").exists()


def test_ratings_titles_and_lengths_filter(tmp_path):
  rows = ["u,a,1,5", "u,b,2,2", "u,c,3,5", "u,d,4,4", "v,a,1,5", "v,c,2,5", "v,d,3,", "w,c,1,5"]
  (tmp_path / "a.csv").write_text("user,item,time,stars\n" + "\n".join(rows))
  (tmp_path / "items.csv").write_text("item,title\na,A\nc,\nd,D\nb,B\n")
  options = {"events": tmp_path / "a.csv", "metadata": tmp_path / "items.csv"}
  also = {"columns.rating": "stars", **NO_FILTERS}
  found = prepare(tmp_path / "1", **options, min_rating=4.0, also=also)
  assert sequences_by_key(tmp_path / "1") == {"u": ["a", "c", "d"], "v": ["a", "c"], "w": ["c"]}
  assert [*found["steps"]] == ["read", "ratings of at least 4", "without duplicates (exact)"]
  prepare(tmp_path / "2", **options, require="title", also=also)
  assert sequences_by_key(tmp_path / "2") == {"u": ["a", "b", "d"], "v": ["a", "d"]}
  prepare(tmp_path / "3", **options, also={**also, "min_length": 4})
  assert sequences_by_key(tmp_path / "3") == {"u": ["a", "b", "c", "d"]}


def test_metadata_that_match_no_event_are_refused(tmp_path):
  (tmp_path / "a.csv").write_text("user,item,time\nu,0108775015,1\nu,0108775016,2\n")
  (tmp_path / "items.csv").write_text("item,title\n108775015,A\n108775016,B\n")
  options = {"events": tmp_path / "a.csv", "metadata": tmp_path / "items.csv", "also": NO_FILTERS}
  with pytest.raises(UserError, match="the item '0108775015', a description '108775015'"):
    prepare(tmp_path / "out", **options)
  (tmp_path / "items.csv").write_text("item,title\n")
  with pytest.raises(UserError, match="--config.metadata: describes no item"):
    prepare(tmp_path / "out", **options)
  items = {"item": [108775015], "title": ["A"]}
  with pytest.raises(UserError, match="describes none of the items"):
    events = {"user": ["u"], "item": ["0108775015"], "time": [1]}
    from_dataframe(events, tmp_path / "out", items_frame=items, settings=NO_FILTERS)
  assert not (tmp_path / "out").exists()
  (tmp_path / "items.csv").write_text("item,title\n108775015,A\n0108775016,B\n")
  assert prepare(tmp_path / "out", **options)["dataset"]["items described"] == 1


@pytest.mark.parametrize(
  ("source", "year", "ratings", "described"),
  [
    ("amazon2014", "amazon2014", "u,a,5,1\nu,b,5,2\n", "{'asin': '%s', 'title': 'T'}"),
    ("amazon2018", "amazon2014", "a,u,5,1\nb,u,5,2\n", "{'asin': '%s', 'title': 'T'}"),
    ("", "amazon2014", "user,item,time\nu,a,1\nu,b,2\n", '{"asin": "%s", "title": "T"}'),
    (
      "",
      "amazon2023",
      "user_id,parent_asin,rating,timestamp\nu,a,5,1\nu,b,5,2\n",
      '{"parent_asin": "%s", "title": "T"}',
    ),
  ],
)
def test_ratings_as_csv_beside_metadata_as_json(tmp_path, source, year, ratings, described):
  (tmp_path / "ratings.csv").write_text(ratings)
  (tmp_path / "meta.json").write_text("\n".join(described % key for key in "ab"))
  files = {"events": tmp_path / "ratings.csv", "metadata": tmp_path / "meta.json"}
  found = prepare(tmp_path / "out", source=source, **files, also=NO_FILTERS)
  assert sequences_by_key(tmp_path / "out") == {"u": ["a", "b"]}
  assert found["dataset"]["items with title"] == 2
  assert found["formats"][str(tmp_path / "meta.json")] == year
  (tmp_path / "items.csv").write_text("item,title\na,T\n")
  files["metadata"] = tmp_path / "items.csv"  # a table beside Amazon's events
  found = prepare(tmp_path / "table", source=source, **files, also=NO_FILTERS)
  assert found["dataset"]["items with title"] == 1


def test_an_item_whose_title_is_a_script_has_none(tmp_path):
  reviews = [{"reviewerID": "u", "asin": key, "unixReviewTime": n} for n, key in enumerate("ab")]
  (tmp_path / "a.json").write_text("\n".join(map(json.dumps, reviews)))
  items = [{"asin": "a", "title": "var a = window;"}, {"asin": "b", "title": "<b>B</b>"}]
  (tmp_path / "meta.json").write_text("\n".join(map(json.dumps, items)))
  files = {"events": tmp_path / "a.json", "metadata": tmp_path / "meta.json"}
  prepare(tmp_path / "out", **files, require="title", also=NO_FILTERS)
  assert sequences_by_key(tmp_path / "out") == {"u": ["b"]}


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, dict])
def test_from_dataframe_does_what_the_command_does(tmp_path, kind):
  columns = {"who": ["u", "u", "v", "u"], "item": [3, 1, 1, 2], "when": [3, 1, 5, 2]}
  items = {"item": [1, 2], "title": ["one", None]}
  changes = {"columns.user": "who", "columns.time": "when", **NO_FILTERS}
  output = tmp_path / "frame"
  from_dataframe(kind(columns), output, items_frame=kind(items), settings=changes)
  pd.DataFrame(columns).to_csv(tmp_path / "a.csv", index=False)
  pd.DataFrame(items).to_csv(tmp_path / "items.csv", index=False)
  names = {"events": tmp_path / "a.csv", "metadata": tmp_path / "items.csv"}
  prepare(tmp_path / "command", **names, also=changes)
  for name in ("sequences.txt", "items.jsonl", "users.jsonl", "times.npy"):
    assert (output / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name
  with pytest.raises(UserError, match="no key 'colums.user'; did you mean 'columns.user'"):
    from_dataframe(columns, tmp_path / "x", settings={"colums.user": "who"})


def test_odd_keys_survive(tmp_path):
  keys = ["tab\there", "nul\0", "\N{SNOWMAN}\N{PILE OF POO}", "e\u0301", "\u00e9", ' "q" ', "#"]
  lines = [{"reviewerID": k, "asin": k, "unixReviewTime": n} for n, k in enumerate(keys)]
  raw = tmp_path / "raw.json"
  raw.write_text("\n".join(map(json.dumps, lines)))
  prepare(tmp_path / "out", source="amazon2018", events=raw, also=NO_FILTERS)
  assert sequences_by_key(tmp_path / "out") == {k: [k] for k in keys}


@pytest.mark.slow
def test_a_user_with_a_million_events(tmp_path):
  frame = pl.DataFrame({"user": ["u"] * 10**6, "item": np.arange(10**6) % 999, "time": 10**6 * [0]})
  frame.write_parquet(tmp_path / "a.parquet")
  found = prepare(tmp_path / "out", events=tmp_path / "a.parquet", duplicates="keep")
  assert found["dataset"]["length"]["100%"] == 10**6
  assert len(dataset.read_dataset(tmp_path / "out").sequence(0)) == 10**6


PAGE = "configs/prepare.py"


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ([], "--config.events is missing; expected the files that hold events"),
    (["--config.source=amazon2015"], "expected one of amazon2014, amazon2018, amazon2023, movie"),
    (["--config.events=nothing.csv"], "nothing.csv: no such file"),
    (["--config.evnts=a.csv"], "--config.evnts: no such key; did you mean events?"),
    (["--config.events=a.csv", "--config.require=title"], "name one by --config.metadata"),
    (["--config.events=a.csv", "--config.require=size"], "--config.require=size: expected one of"),
    (["--config.events=README.md", "--config.min_rating=4"], "needs --config.columns.rating"),
    (["--config.events=a.csv", "--config.ties=random"], "ties=random: expected one of file, hash"),
    (
      ["--config.events=README.md", "--config.ties=hash", "--config.columns.time="],
      "--config.ties=hash: needs --config.columns.time",
    ),
    (["--config.events=a.csv", "--config.quoting=single"], "expected one of double, backslash, n"),
    (["--config.events=a.csv", "--config.encoding=klingon"], "encoding=klingon: expected an enco"),
    (["--config.events=a.csv", "--config.encoding=base64"], "as latin-1 or utf-16"),
    (["--config.events=a.csv", "--config.encoding=idna"], "encoding=idna: expected an encoding th"),
    (["--config.events=a.csv", "--config.encoding=punycode"], "encoding=punycode: expected an enc"),
    (["--config.events=a.csv", "--config.metadata_source=table"], "name one by --config.metadata"),
    (
      ["--config.events=a.csv", "--config.columns.item=user"],
      "item=user: is the column of user, to",
    ),
    (["--config.events=/dev/null"], "/dev/null: is not a regular file; write its contents"),
    (["--config.events=a.csv", "--config.core.user=-1"], "--config.core.user=-1: expected a numb"),
  ],
)
def test_mistakes_are_one_line(tmp_path, options, says):
  line = commands.refused("prepare", f"--config={PAGE}", f"--output={tmp_path / 'o'}", *options)
  assert says in line and not (tmp_path / "o").exists()


def test_bad_lines_are_counted_and_told(tmp_path):
  raw = tmp_path / "raw.json"
  good = '{"reviewerID": "u", "asin": "%d", "unixReviewTime": %d}'
  raw.write_text("\n".join([good % (n, n) for n in range(6)] + ["{}", "half {"]))
  options = {"source": "amazon2014", "events": raw, "also": NO_FILTERS}
  with pytest.raises(UserError, match=r"^2 bad lines, allowed are 0 .*raw.json:7: .*raw.json:8: "):
    prepare(tmp_path / "out", **options)
  found = prepare(tmp_path / "out", **options, max_bad_lines=2)
  assert found["bad lines"]["count"] == 2 and found["dataset"]["events"] == 6
  with pytest.raises(UserError, match="out: exists; name another, or delete it"):
    prepare(tmp_path / "out", **options, max_bad_lines=2)


def test_a_link_is_followed_and_a_year_1_is_no_picture(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "real")
  (tmp_path / "a.csv").write_text("user,item,time\nu,x,0001-01-01\nu,y,2024-01-01\n")
  prepare(tmp_path / "link", events=tmp_path / "a.csv", also=NO_FILTERS)
  assert sequences_by_key(tmp_path / "real") == {"u": ["x", "y"]}
  with pytest.raises(UserError, match="a.csv is a file; expected a folder"):
    prepare(tmp_path / "a.csv/below", events=tmp_path / "a.csv", also=NO_FILTERS)
  (tmp_path / "loop").symlink_to("loop")
  for name in ("loop", "loop/below"):
    with pytest.raises(UserError, match="its symbolic links lead in a circle"):
      prepare(tmp_path / name, events=tmp_path / "a.csv", also=NO_FILTERS)


def test_a_full_disk_leaves_nothing(tmp_path):
  """Files may grow to 64 KiB only: a disk that is full in the middle of writing."""
  rows = "".join(f"u{n // 10},i{n % 10},{n}\n" for n in range(30_000))
  (tmp_path / "a.csv").write_text("user,item,time\n" + rows)
  limit = "import resource, runpy, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
  limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
  limit += "runpy.run_module('mmesid_jax.prepare', run_name='__main__')"
  arguments = [f"--config={PAGE}", f"--config.events={tmp_path / 'a.csv'}"]
  arguments += ["--config.core.user=0", "--config.core.item=0", f"--output={tmp_path / 'out'}"]
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, "-c", limit, *arguments], cwd=root, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 2 and "file too large" in done.stderr, done.stderr
  assert done.stderr.count("\n") == 1 and os.listdir(tmp_path) == ["a.csv"]


def _events_2014(n: int) -> dict:
  return {"reviewerID": f"u{n % 3}", "asin": f"i{n % 4}", "unixReviewTime": n, "overall": 5.0}


SEEDS = {
  "amazon2014": "\n".join(json.dumps(_events_2014(n)) for n in range(12)).encode(),
  "amazon2023": b'{"user_id": "u", "parent_asin": "i", "timestamp": 1588615855070}\n' * 4,
  "movielens": b"userId,movieId,rating,timestamp\n" + b"1,31,2.5,1260759144\n1,32,3,5\n" * 3,
  "table": b'user,item,time\n"a, b",x,2014-07-23\nc,x,5\nc,y,6.5\na,"z ""q""",1400000000000\n',
}
ITEMS = b"{'asin': 'i1', 'title': \"d'Or\", 'categories': [['a', 'b']], 'imUrl': 'u'}\n" * 3
MUTATION = st.tuples(
  st.integers(0, 2**16),
  st.integers(0, 12),
  st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"\n", b'"', b"'", b"{", b"[", b",", b"\xff", b"\0", b"\x1f\x8b", b"PAR1"]),
    st.sampled_from([b"9" * 400, b"(" * 300, b"NaN", b"-", b"\\ud800", b"1e999", b"None"]),
  ),
)


def mutated(data: bytes, mutations) -> bytes:
  for place, removed, inserted in mutations:
    place %= len(data) + 1
    data = data[:place] + inserted + data[place + removed :]
  return data


def prepare_fuzzed(folder, source, named, data, items, allowed):
  """Whatever is in the files: a dataset that reads back, or one UserError and nothing left."""
  raw = folder / ("ratings.csv" if source == "movielens" else "raw")
  raw.write_bytes(data)
  options = {"events": raw, "max_bad_lines": allowed, "also": NO_FILTERS}
  if named:
    options["source"] = source
  if source == "amazon2014":
    (folder / "items").write_bytes(items)
    options["metadata"] = folder / "items"
  before = sorted(os.listdir(folder))
  try:
    prepare(folder / "out", **options)
  except UserError:
    assert sorted(os.listdir(folder)) == before
  else:
    found = dataset.prepare_dataset(folder / "out", folder / "cache")
    assert len(user_keys(folder / "out")) == len(found)
    assert len(item_keys(folder / "out")) == found.num_items and len(found.titles())


@pytest.mark.parametrize("examples", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_bytes_give_a_dataset_or_one_line(monkeypatch, examples):
  monkeypatch.setattr(
    prepared_folder.ingest_report, "report_page", lambda *a: ""
  )  # pictures take most of the time

  @settings(max_examples=examples, database=None)
  @given(
    source=st.sampled_from([*SEEDS]),
    named=st.booleans(),
    mutations=st.lists(MUTATION, max_size=4),
    of_items=st.lists(MUTATION, max_size=3),
    compressed=st.booleans(),
    allowed=st.sampled_from([0, 2, 1_000]),
  )
  def check(source, named, mutations, of_items, compressed, allowed):
    data = gzip.compress(SEEDS[source], 1) if compressed else SEEDS[source]
    with tempfile.TemporaryDirectory() as folder:
      items = mutated(ITEMS, of_items)
      data = mutated(data, mutations)
      prepare_fuzzed(pathlib.Path(folder), source, named, data, items, allowed)

  check()
