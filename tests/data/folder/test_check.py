"""Everything that is wrong with a folder, planted and found, each with its file and line."""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmesid_jax.data import features
from mmesid_jax.data.dataset import prepare_dataset
from mmesid_jax.data.features import open_features
from mmesid_jax.data.folder.check import check_folder, find_problems
from mmesid_jax.data.folder.problems import Mistake, format_problems
from mmesid_jax.data.synthetic import write_synthetic
from mmesid_jax.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A folder of everything, with nothing wrong: 30 users, 20 items. Read only."""
  path = tmp_path_factory.mktemp("data") / "whole"
  write_synthetic(path, users=30, items=20, clusters=4, seed=0)
  for name, field, id_name in (("items", "key", "item_id"), ("users", "key", "user_id")):
    if name == "items":
      lines = [json.loads(line) for line in (path / "items.jsonl").read_text().splitlines()]
    else:
      lines = [{"user_id": u} for u in range(1, 31)]
    text = "".join(json.dumps(x | {field: f"K{x[id_name]}"}) + "\n" for x in lines)
    (path / f"{name}.jsonl").write_text(text)
  lengths = [len(line.split()) - 1 for line in (path / "sequences.txt").read_text().splitlines()]
  np.save(path / "times.npy", np.concatenate([np.arange(n) for n in lengths]))
  return path


@pytest.fixture
def folder(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / "folder")


def change(path, *changes):
  """Replaces lines, by number from 1; None deletes, a line too many is appended."""
  lines = path.read_text().splitlines()
  for number, line in changes:
    lines[number - 1 : number] = [] if line is None else [line]
  path.write_text("\n".join(lines) + "\n")


def told_of(folder, *feature_files):
  return list(map(str, find_problems(folder, feature_files)))


def test_nothing_is_wrong_with_what_is_right(folder, capsys):
  assert told_of(folder) == []
  check_folder(folder, ["text.npy"])
  assert capsys.readouterr().out == f"{folder}: ready for training\n"
  for file in ("items.jsonl", "users.jsonl", "times.npy", "text.npy", "visual.npy"):
    (folder / file).unlink()
  assert told_of(folder) == []


def test_all_files_are_told_of_at_once(folder, capsys):
  change(
    folder / "sequences.txt",
    *((n, f"{n} 3 0") for n in (17, 18, 20, 21)),
    *((2, "2 5 5 99"), (4, "4"), (5, "5 1 x x"), (7, "6 1 2 3"), (9, "")),
  )
  change(folder / "items.jsonl", (3, "{"), (5, '{"item_id": 5, "title": 5, "categories": 5}'))
  change(folder / "items.jsonl", (7, r'{"item_id": 7, "title": "\ud800"}'))
  change(folder / "users.jsonl", (3, "{"), (4, '{"user_id": 5, "key": "a"}'), (30, None))
  x_IV = np.load(folder / "text.npy")
  x_IV[[4, 7], 3] = np.nan
  np.save(folder / "text.npy", x_IV)
  np.save(folder / "visual.npy", x_IV[:-1])
  (folder / "third.npy").write_bytes(b"")
  found = told_of(folder, "visual.npy", "fourth.npy")
  kinds = [
    "items.jsonl:3: not JSON (",
    "items.jsonl:5: title is '5', not a string",
    "items.jsonl:5: categories is '5'; expected a list",
    "items.jsonl:7: title holds half of a surrogate pair",
    "sequences.txt:2: item id '99', but items.jsonl holds only 20 items",
    "sequences.txt:4: user 4 has no items",
    "sequences.txt:5: 'x' is not an integer",
    "sequences.txt:7: user 6 is already on line 6",
    "sequences.txt:9: is blank",
    "sequences.txt:17: item id '0'; ids count from 1, 0 is padding (and 3 more lines: 18, 20, ...)",
    "warning: times.npy: not compared with sequences.txt",
    "users.jsonl:3: not JSON (",
    "visual.npy: 20 rows; expected 21",
    "visual.npy: row 4 holds NaN or infinity (2 such rows)",
    "fourth.npy: no such file",
    "text.npy: row 4 holds NaN or infinity (2 such rows)",
    "third.npy: not a plain .npy table (damaged",
  ]
  for kind in kinds:
    assert sum(line.startswith(kind) for line in found) == 1, (kind, found)
  # users.jsonl is not compared with lines that are no users, a line without a key is a warning
  rest = [line for line in found if not line.startswith(tuple(kinds))]
  assert [line.split(" (")[0] for line in rest] == [
    "warning: items.jsonl:5: no text under 'key' as the key"
  ]
  with pytest.raises(
    UserError, match="folder: cannot be used for training because of 16 kinds of mistakes"
  ):
    check_folder(folder, ["visual.npy", "fourth.npy"])
  assert capsys.readouterr().out.splitlines() == found


@pytest.mark.parametrize(
  ("file", "changes", "says"),
  [
    ("sequences.txt", [(30, "30 1 2 21")], "sequences.txt:30: item id '21', but items.jsonl"),
    ("items.jsonl", [(2, '{"item_id": 3, "key": "a"}')], 'items.jsonl:2: expected .*"item_id": 2'),
    ("users.jsonl", [(2, '{"user_id": 3, "key": "a"}')], 'users.jsonl:2: expected .*"user_id": 2,'),
    ("users.jsonl", [(30, None)], "users.jsonl: 29 lines; expected 30, one for each of seq"),
    ("users.jsonl", [(31, '{"user_id": 31, "key": "a"}')], "users.jsonl: 31 lines; expected 30"),
    ("users.jsonl", [(2, "[2]")], 'users.jsonl:2: expected an object with "user_id": 2'),
  ],
)
def test_one_mistake_is_told_once(folder, file, changes, says):
  (folder / "times.npy").unlink()
  change(folder / file, *changes)
  found = [str(p) for p in find_problems(folder) if not p.warning]
  assert len(found) == 1, found
  assert re.match(says, found[0]), found[0]


def test_times_that_go_back_or_do_not_fit(folder):
  times = np.load(folder / "times.npy")
  first_of = np.flatnonzero(times == 0)
  times[first_of[2] + 1] = -1
  times[first_of[5] + 2 : first_of[5] + 4] = -5, -6
  np.save(folder / "times.npy", times)
  row, (a, b) = first_of[2] + 1, (first_of[5] + 2, first_of[5] + 3)
  assert told_of(folder) == [
    f"times.npy: row {row} is earlier than row {row - 1}, both of the user on sequences.txt:3; "
    f"expected a user's items oldest first (and 2 more rows: {a}, {b})"
  ]
  np.save(folder / "times.npy", times[:-1])
  (line,) = told_of(folder)
  assert line.startswith(f"times.npy: {len(times) - 1} times; expected {len(times)}")


def test_warnings_do_not_keep_from_training(folder, capsys):
  change(folder / "users.jsonl", *((n, json.dumps({"user_id": n, "key": "K1"})) for n in (8, 9)))
  change(folder / "items.jsonl", (6, '{"item_id": 6, "key": "K5"}'))
  change(folder / "items.jsonl", *((n, f'{{"item_id": {n}, "key": "K{n}"}}') for n in (21, 22)))
  change(folder / "sequences.txt", (31, "31 4"), (32, "32 4 4"))
  change(
    folder / "users.jsonl", *((n, json.dumps({"user_id": n, "key": f"K{n}"})) for n in (31, 32))
  )
  (folder / "times.npy").unlink()
  (folder / "visual.npy").unlink()
  x_IV = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
  x_IV[3] = 0
  x_IV[9, 1], x_IV[15, 1] = 0.0, -0.0
  x_IV[15, [0, 2, 3]] = x_IV[9, [0, 2, 3]]
  x_IV[20:22] = x_IV[2]
  np.save(folder / "text.npy", x_IV)
  np.save(folder / "numbers.npy", np.arange(23))
  check_folder(folder)
  assert capsys.readouterr().out.splitlines() == [
    "warning: items.jsonl:6: key 'K5' is already on line 5",
    "warning: sequences.txt: users with fewer than 3 items, whom leave-one-out does not evaluate: "
    "2 (lines 31, 32)",
    "warning: items.jsonl: items that no user has: 2 (lines 21, 22)",
    "warning: users.jsonl:8: key 'K1' is already on line 1 (and 1 more line: 9)",
    "warning: numbers.npy: not checked: its shape is [23], but 22 items need 23 rows",
    "warning: text.npy: items with a row of zeros: 1 (row 3)",
    "warning: text.npy: items with the same row as an earlier one: 3 (rows 15, 20, 21)",
    f"{folder}: ready for training",
  ]


def test_equal_rows_are_found_across_chunks_and_types(folder, monkeypatch):
  (folder / "visual.npy").unlink()
  (folder / "text.npy").unlink()
  x_IV = np.random.default_rng(0).normal(size=(21, 4)).astype(ml_dtypes.bfloat16)
  x_IV[[7, 18]] = x_IV[2]
  x_IV[[11, 13]] = 0
  save_file({"x": x_IV}, folder / "text.safetensors")
  expected = [
    "warning: text.safetensors: items with a row of zeros: 2 (rows 11, 13)",
    "warning: text.safetensors: items with the same row as an earlier one: 2 (rows 7, 18)",
  ]
  assert told_of(folder) == expected
  monkeypatch.setattr(features, "CHUNK_BYTES", 4 * 4 * 3)
  assert told_of(folder) == expected
  (folder / "text.safetensors").unlink()
  np.save(folder / "text.npy", np.asfortranarray(x_IV.astype(np.float64)))
  assert told_of(folder) == [line.replace("safetensors", "npy") for line in expected]


def test_keys_are_missed_only_where_others_have_one(folder):
  for file in ("items.jsonl", "users.jsonl"):
    text = (folder / file).read_text()
    (folder / file).write_text(text.replace('"key"', '"asin"'))
  assert told_of(folder) == []
  change(folder / "users.jsonl", (5, '{"user_id": 5, "key": "a"}'))
  (line,) = told_of(folder)
  assert line.startswith("warning: users.jsonl:1: no text under 'key'")
  assert line.endswith("(and 28 more lines: 2, 3, ...)")


def test_without_a_number_of_items_no_table_is_judged(folder):
  (folder / "items.jsonl").write_text("")
  (folder / "sequences.txt").write_text("x\n")
  assert told_of(folder)[:2] == [
    "items.jsonl: is empty; expected one JSON object per item",
    "sequences.txt:1: 'x' is not an integer; expected `user item item ...`",
  ]
  unknown = "not checked: the number of items is not known"
  assert told_of(folder)[-2:] == [f"warning: {n}.npy: {unknown}" for n in ("text", "visual")]
  (folder / "sequences.txt").unlink()
  assert "sequences.txt: no such file" in told_of(folder)


def test_no_directory(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such directory; expected one that holds seq"):
    check_folder(tmp_path / "nowhere")


def test_the_first_of_every_kind_is_told_in_the_order_of_the_file():
  mistakes = [
    *(Mistake("a", "is an a", line=n) for n in (2, 2, 3)),
    Mistake("b", "is a b", row=0),
    Mistake("c", "is not a file"),
    *(Mistake("a", "is an a", line=n) for n in (7, 7, 8)),
    Mistake("b", "is a b", row=9),
  ]
  assert list(format_problems("x", mistakes)) == [
    "x:2: is an a (and 3 more lines: 3, 7, ...)",
    "x: row 0 is a b (and 1 more row: 9)",
    "x: is not a file",
  ]


def test_what_is_refused_is_what_is_told(folder):
  """Whatever the check finds first, training stops at, and by the same words."""
  change(folder / "sequences.txt", (3, "3 1 0"), (8, "8 0"), (9, "z"))
  first, *_ = told_of(folder)
  with pytest.raises(UserError) as caught:
    prepare_dataset(folder, folder / "cache")
  assert first == str(caught.value).removeprefix(f"{folder}/") + " (and 1 more line: 8)"
  np.save(folder / "text.npy", np.load(folder / "text.npy")[1:])
  with pytest.raises(UserError) as caught:
    open_features(folder / "text.npy", 20)
  assert str(caught.value).removeprefix(f"{folder}/") in told_of(folder, "text.npy")


def test_targets_that_repeat_are_counted(folder):
  change(folder / "sequences.txt", (1, "1 3 4 3"), (2, "2 5 5 6"))
  (line,) = [line for line in told_of(folder) if "met again" in line]
  assert line.startswith("warning: sequences.txt: ") and "unmasked" in line and "--repeat" in line
  assert "1 of 30 (3.3%) of the valid items, 1 of 30 (3.3%) of the test items" in line
