"""Results out: semantic IDs and recommendations for all users, as files, by the commands."""

import csv
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np
import polars as pl
import pytest
from commands import refused, run, start

from mmesid_jax import pipeline
from mmesid_jax.config.saved import read_config
from mmesid_jax.data.repeats import Repeats
from mmesid_jax.display.escape import escape_line
from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.reports import code_export
from mmesid_jax.reports.test_ranks import evaluation_file
from mmesid_jax.serving import all_users, answer, options
from mmesid_jax.serving.options import Options
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages import new_item_codes
from mmesid_jax.stages.workdir import reopen_workdir

ODD = ["é", "商品", '"\\', "\u200f\u0645", "a,b", "🧴", "L'Or"]
ITEM_KEYS = [f"{ODD[i % len(ODD)]}{i}" for i in range(1, 41)]


def user_key(user: int) -> str:
  return f"A{user} {ODD[user % len(ODD)]}\u2028"


def give_keys(workdir: pathlib.Path, field: str = "key") -> pathlib.Path:
  """The workdir's data set with keys."""
  data = workdir / "synthetic"
  items = [json.loads(line) for line in (data / "items.jsonl").read_text().splitlines()]
  lines = [json.dumps(item | {field: key}) for item, key in zip(items, ITEM_KEYS, strict=True)]
  (data / "items.jsonl").write_text("\n".join(lines) + "\n")
  users = (data / "sequences.txt").read_text().splitlines()
  names = [json.dumps({"key": user_key(int(line.split()[0]))}) for line in users]
  (data / "users.jsonl").write_text("\n".join(names) + "\n")
  return workdir


def histories(workdir: pathlib.Path) -> dict[int, list[int]]:
  lines = (workdir / "synthetic" / "sequences.txt").read_text().splitlines()
  return {int(user): [*map(int, items)] for user, *items in map(str.split, lines)}


def read(path: pathlib.Path) -> list[dict]:
  if path.suffix == ".parquet":
    return pl.read_parquet(path).to_dicts()
  return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def everyone(workdir: pathlib.Path, output: pathlib.Path, **changes) -> None:
  all_users.write_all_users(workdir, output, Options(**{"top_k": 5, **changes}), overwrite=True)


def test_semantic_ids_are_exported(workdir, tmp_path):
  expected, _ = read_artifact(workdir / "semantic_ids.safetensors", "semantic_ids")
  command = ("semantic_ids", "export", f"--workdir={workdir}")
  status, out, err = run(*command, f"--output={tmp_path}/plain.parquet")
  assert status == 0, err
  assert "40 items, item_id, title, collaborative, text" in out
  plain = pl.read_parquet(tmp_path / "plain.parquet")
  assert plain.columns == ["item_id", "title", "collaborative", "text"]
  assert plain.dtypes == [pl.Int64, pl.String, pl.List(pl.Int32), pl.List(pl.Int32)]
  assert plain["item_id"].to_list() == list(range(1, 41))
  for m in ("collaborative", "text"):
    np.testing.assert_array_equal(plain[m].to_list(), expected[f"codes.{m}"][1:])
  give_keys(workdir, "asin")
  status, _, err = run(*command, f"--output={tmp_path}/ids.jsonl", "--key=asin")
  assert status == 0, err
  rows = read(tmp_path / "ids.jsonl")
  assert [row["key"] for row in rows] == ITEM_KEYS
  assert [{k: v for k, v in row.items() if k != "key"} for row in rows] == plain.to_dicts()


def test_mistakes_of_semantic_ids_are_one_line(workdir, tmp_path):
  export = ("semantic_ids", "export", f"--workdir={workdir}")
  assert "--output is missing" in refused(*export)
  line = refused(*export, f"--output={tmp_path}/ids.csv")
  assert "ids.csv: expected a name that ends in .parquet or .jsonl" in line
  line = refused(*export, f"--output={tmp_path}/ids.jsonl", "--features=text=a.npy")
  assert "--features: export takes none" in line
  encode = ("semantic_ids", "encode", f"--workdir={workdir}", f"--output={tmp_path}/x")
  assert "--features is missing" in refused(*encode)
  assert "--key: encode takes none" in refused(*encode, "--features=text=a.npy", "--key=asin")
  output = tmp_path / "ids.jsonl"
  with pytest.raises(UserError, match=r"items.jsonl:1: no text under 'asin'"):
    code_export.export_codes(workdir, output, data_dir=None, key="asin")
  of_four_items(workdir)
  with pytest.raises(UserError, match=r"synthetic: holds other users, items or interactions"):
    code_export.export_codes(workdir, output, data_dir=None, key=None)
  assert not list(tmp_path.glob("ids*"))


def of_four_items(workdir: pathlib.Path) -> None:
  (workdir / "synthetic" / "items.jsonl").unlink()
  (workdir / "synthetic" / "sequences.txt").write_text("1 2 3 4\n")


@pytest.mark.parametrize(
  "refused",
  ["files.lock.append_bytes", "files.artifact.write_text", "files.resumable.PartFiles.write"],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_no_folder_without_a_part(
  trained, tmp_path, monkeypatch, refused, there
):
  """One that was there before stays: another run may have made it."""

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out")

  folder = tmp_path / "out.jsonl.parts"
  if there:
    folder.mkdir()
  monkeypatch.setattr(f"mmesid_jax.{refused}", full)
  with pytest.raises((UserError, OSError), match=r"(?i)no space left on device"):
    everyone(trained, tmp_path / "out.jsonl")
  assert list(tmp_path.iterdir()) == [folder] * there


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_all_users_get_what_each_gets_alone(workdir, tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(all_users, "USERS_PER_PART", 25)  # 60 users: the last part is short
  give_keys(workdir)
  output = tmp_path / f"recs{suffix}"
  everyone(workdir, output)
  rows, model, had = read(output), Recommender.load(workdir), histories(workdir)
  assert [f.name for f in tmp_path.glob("recs*")] == [output.name]
  assert [row["user_id"] for row in rows] == list(had)
  for row in rows:
    user = row["user_id"]
    assert row["user_key"] == user_key(user)
    assert row["item_keys"] == [ITEM_KEYS[i - 1] for i in row["item_ids"]]
    assert len(row["item_ids"]) == 5 and not set(row["item_ids"]) & set(had[user])
    (alone,) = model.recommend([had[user]], 5)
    assert row["item_ids"] == [r.item for r in alone]
    np.testing.assert_allclose(row["scores"], [r.score for r in alone], rtol=1e-4)
  everyone(workdir, output, top_k=40)
  assert [len(row["item_ids"]) for row in read(output)] == [40 - len(set(h)) for h in had.values()]
  everyone(workdir, output, top_k=40, repeat=True)
  assert {len(row["item_ids"]) for row in read(output)} == {40}


@pytest.mark.parametrize("with_keys", [False, True])
def test_csv_has_a_row_for_every_recommended_item(workdir, tmp_path, with_keys, monkeypatch):
  monkeypatch.setattr(all_users, "USERS_PER_PART", 25)
  if with_keys:
    give_keys(workdir)
  for split, top_k in ((None, 5), ("test", 40)):
    for name in ("recs.csv", "recs.jsonl"):
      options = Options(top_k=top_k)
      all_users.write_all_users(workdir, tmp_path / name, options, split, overwrite=True)
    with (tmp_path / "recs.csv").open(encoding="utf-8", newline="") as file:
      found = list(csv.DictReader(file))
    expected = []
    for row in read(tmp_path / "recs.jsonl"):
      lists = {name: row.pop(name) for name in ("item_ids", "item_keys", "scores") if name in row}
      for place, values in enumerate(zip(*lists.values(), strict=True), 1):
        one = dict(zip((name[:-1] for name in lists), values, strict=True))
        expected.append({**row, "place": place, **one})
    assert len(found) == len(expected) > 60 * 4
    for row, of_lists in zip(found, expected, strict=True):
      assert row == {name: str(value) for name, value in of_lists.items()}


@pytest.mark.parametrize(
  ("made", "served", "split"),
  [
    ("trained", "MME-SID", "valid"),
    ("trained", "MME-SID", "test"),
    ("blended", "MME-SID + evidence", "test"),
  ],
)
def test_metrics_can_be_computed_again_from_the_lists(
  made, served, split, request, tmp_path, monkeypatch
):
  """By their definitions, from the file alone: HR and nDCG, MRR, coverage; masked and unmasked."""
  workdir = shutil.copytree(request.getfixturevalue(made), tmp_path / "copy")
  monkeypatch.setattr(all_users, "USERS_PER_PART", 25)
  give_keys(workdir)
  pipeline.report_ranks(reopen_workdir(workdir), split)
  file = workdir / evaluation_file(split)
  reported = json.loads(file.read_text())["models"][served]
  had, held_out = histories(workdir), {"valid": -2, "test": -1}[split]
  for protocol, repeat in (("masked", False), ("unmasked", True)):
    output = tmp_path / f"{protocol}.jsonl"
    all_users.write_all_users(workdir, output, Options(top_k=20, repeat=repeat), split)
    rows = read(output)
    assert {row["user_id"]: row["target_id"] for row in rows} == {
      user: items[held_out] for user, items in had.items()
    }
    for row in rows:
      assert row["target_key"] == ITEM_KEYS[row["target_id"] - 1]
      assert row["user_key"] == user_key(row["user_id"])
      if not repeat:
        assert not set(row["item_ids"]) & set(had[row["user_id"]][:held_out])
    for k in (5, 10, 20):
      lists = [row["item_ids"][:k] for row in rows]
      places = [
        items.index(row["target_id"]) + 1 if row["target_id"] in items else np.inf
        for row, items in zip(rows, lists, strict=True)
      ]
      expected = {
        "HR": np.mean(np.isfinite(places)),
        "nDCG": np.mean(1 / np.log2(np.add(places, 1))),
        "MRR": np.mean(np.divide(1, places)),
        "coverage": len({item for items in lists for item in items}) / 40,
      }
      for name, value in expected.items():
        assert reported[protocol][f"{name}@{k}"]["mean"] == pytest.approx(value), (protocol, name)


def test_a_split_without_targets_is_refused(workdir, tmp_path):
  data = workdir / "synthetic" / "sequences.txt"
  data.write_text("1 2 40\n")
  with pytest.raises(UserError, match="--split=test: no user has a test target; the leave-one-out"):
    all_users.write_all_users(workdir, tmp_path / "recs.jsonl", Options(top_k=5), "test")


def test_lists_that_leave_out_what_people_come_back_to_say_so(trained, monkeypatch, capsys):
  monkeypatch.setattr(
    options, "count_repeats", lambda dataset: {"test": Repeats(60, 5), "valid": Repeats(60, 0)}
  )
  for repeat in (False, True):
    options.open_recommender(trained, Options(repeat=repeat))
    err = capsys.readouterr().err
    assert ("warning: 5 of 60 (8.3%) of the test items are in" in err) != repeat
    assert ("--repeat keeps it in" in err) != repeat


def test_new_items_are_recommended_to_all_users_without_a_key(workdir, tmp_path):
  text = np.load(workdir / "synthetic" / "text.npy", allow_pickle=False)
  file = tmp_path / "new.safetensors"
  new_item_codes.write_new_items(
    file, new_item_codes.encode_new_items(workdir, read_config(workdir), {"text": text[[4, 6]]})
  )
  give_keys(workdir)
  output = tmp_path / "recs.parquet"
  everyone(workdir, output, new_items=str(file), top_k=42, repeat=True)
  for row in read(output):
    assert sorted(row["item_ids"]) == list(range(1, 43))
    key_of = dict(zip(row["item_ids"], row["item_keys"], strict=True))
    assert key_of == dict(enumerate([*ITEM_KEYS, None, None], 1))
  with pytest.raises(UserError, match="top_k=3: expected a number from 1 to 2"):
    everyone(workdir, output, new_items=str(file), only_new=True, top_k=3)
  alone = tmp_path / "new.jsonl"
  everyone(workdir, alone, new_items=str(file), only_new=True, top_k=2)
  assert {tuple(sorted(row["item_ids"])) for row in read(alone)} == {(41, 42)}


def test_what_stands_between_two_runs_is_refused_or_gone_on_with(workdir, tmp_path, monkeypatch):
  monkeypatch.setattr(all_users, "USERS_PER_PART", 25)
  output, asked = tmp_path / "recs.jsonl", []
  best = Recommender.top_items

  def counted(model, given, *options, **more):
    asked.append(len(given))
    if len(asked) == 2:
      raise KeyboardInterrupt
    return best(model, given, *options, **more)

  monkeypatch.setattr(Recommender, "top_items", counted)
  with pytest.raises(KeyboardInterrupt):
    everyone(workdir, output)
  for changes, says in (
    ({"top_k": 6}, "top_k was 5, now 6"),
    ({"repeat": True}, "repeat was False, now True"),
    ({"key": "title"}, "columns was .* now .*item_keys"),
  ):
    with pytest.raises(UserError, match=says):
      everyone(workdir, output, **changes)
  parts = shutil.copytree(tmp_path / "recs.jsonl.parts", tmp_path / "kept")
  change_model(workdir)
  with pytest.raises(UserError, match="model was "):
    everyone(workdir, output)
  shutil.copytree(parts, tmp_path / "recs.jsonl.parts", dirs_exist_ok=True)
  give_keys(workdir)
  with pytest.raises(UserError, match="holds parts of another run"):
    everyone(workdir, output)
  assert asked == [25, 25]


def test_parts_with_another_blend_are_refused(blended, tmp_path, monkeypatch):
  workdir, output = shutil.copytree(blended, tmp_path / "copy"), tmp_path / "recs.jsonl"
  best = Recommender.top_items

  def stopped(*given, **options):
    if list(tmp_path.glob("recs.jsonl.parts/*.jsonl")):
      raise ZeroDivisionError
    return best(*given, **options)

  monkeypatch.setattr(all_users, "USERS_PER_PART", 25)
  monkeypatch.setattr(Recommender, "top_items", stopped)
  with pytest.raises(ZeroDivisionError):
    everyone(workdir, output)
  tensors, header = read_artifact(workdir / "blend.safetensors", "blend")
  with pytest.raises(UserError, match="model was "):
    everyone(workdir, output, model="network")
  write_artifact(workdir / "blend.safetensors", {**tensors, "weights": np.float32([1, 2])}, header)
  with pytest.raises(UserError, match="model was "):
    everyone(workdir, output)


def test_parts_with_other_keys_are_refused(workdir, tmp_path, monkeypatch):
  give_keys(workdir)
  monkeypatch.setattr(Recommender, "top_items", lambda *given, **more: 1 / 0)
  for key, error, says in (
    ("key", ZeroDivisionError, "by zero"),
    ("title", UserError, "item keys was "),
  ):
    with pytest.raises(error, match=says):
      everyone(workdir, tmp_path / "recs.jsonl", key=key)


def change_model(workdir: pathlib.Path) -> None:
  """Writes the artifact again with one number changed."""
  path = workdir / "recommender.safetensors"
  tensors, header = read_artifact(path, "recommender")
  tensors["model.items.identity_ID"][1, 0] += 1
  write_artifact(path, tensors, header)


def test_finished_parts_are_not_made_again(workdir, tmp_path, monkeypatch):
  monkeypatch.setattr(all_users, "USERS_PER_PART", 25)
  output, asked = tmp_path / "recs.jsonl", []
  best, asks = Recommender.top_items, iter([None, None, "SIGTERM"])

  def counted(model, given, *options, **more):
    asked.append(len(given))
    return best(model, given, *options, **more)

  monkeypatch.setattr(Recommender, "top_items", counted)
  monkeypatch.setattr(all_users.StopRequest, "signal_name", lambda self: next(asks, None))
  with pytest.raises(Interrupted, match="SIGTERM at user 50 of 60, .* run the same command again"):
    everyone(workdir, output)
  assert asked == [25, 25] and not output.exists()
  everyone(workdir, output)
  assert asked == [25, 25, 10]
  assert [row["user_id"] for row in read(output)] == list(histories(workdir))


def wait_for_parts(process: subprocess.Popen, folder: pathlib.Path, count: int) -> None:
  deadline = time.monotonic() + 200
  while len(list(folder.glob("0*.parquet"))) < count:
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.002)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(workdir, tmp_path):
  data = workdir / "synthetic" / "sequences.txt"
  items = [line.split(" ", 1)[1] for line in data.read_text().splitlines()]
  users = 5 * all_users.USERS_PER_PART + 77
  data.write_text("".join(f"{n} {items[n % len(items)]}\n" for n in range(1, users + 1)))
  give_keys(workdir)
  command = ("recommend", f"--workdir={workdir}", "--all_users", "--top_k=5")
  status, out, err = run(*command, f"--output={tmp_path}/whole.parquet")
  assert status == 0, err
  assert f"{users:,} users, user_id, user_key, item_ids, item_keys, scores" in out
  output = tmp_path / "recs.parquet"
  parts = tmp_path / "recs.parquet.parts"
  for number, expected, count in ((signal.SIGKILL, -9, 1), (signal.SIGTERM, 75, 2)):
    process = start(*command, f"--output={output}")
    wait_for_parts(process, parts, count)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == expected, err
    assert count <= len(list(parts.glob("0*.parquet"))) <= 5 and not output.exists()
  assert "stopped: SIGTERM at user" in err and "run the same command again" in err
  status, _, err = run(*command[:3], "--top_k=6", f"--output={output}")
  assert status == 2 and "holds other users" in err.splitlines()[0]
  assert f"{parts}: holds parts of another run: top_k was 5, now 6" in err.splitlines()[1]
  status, _, err = run(*command, f"--output={output}")
  assert status == 0, err
  assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
  assert pl.scan_parquet(output).select(pl.len()).collect().item() == users
  assert not parts.exists()


def shown(workdir: pathlib.Path, capsys, key: str | None = None, **given) -> str:
  ((source, value),) = given.items()
  answer.print_recommendations(workdir, source, value, Options(top_k=3, key=key))
  return capsys.readouterr().out


def test_keys_go_in_and_come_out(workdir, tmp_path, capsys):
  give_keys(workdir)
  by_id = shown(workdir, capsys, history="1 5")
  assert f"1 {ITEM_KEYS[0]} " in by_id
  assert shown(workdir, capsys, history_keys=f"{ITEM_KEYS[0]}  {ITEM_KEYS[4]}") == by_id
  by_key = shown(workdir, capsys, user_key=[user_key(7), user_key(2)])
  by_id = shown(workdir, capsys, user=["7", "2"])
  names = {user_key(n): str(n) for n in (2, 7)}
  for key, name in names.items():
    by_key = by_key.replace(f"user {escape_line(key)} had", f"user {name} had")
  assert by_key == by_id
  (tmp_path / "h.txt").write_text("1 5\n")
  answer = json.loads(shown(workdir, capsys, histories=f"{tmp_path}/h.txt"))
  assert all(r["key"] == ITEM_KEYS[r["item"] - 1] for r in answer["items"])
  keys = (f"--user_key={user_key(7)}", f"--user_key={user_key(2)}")
  status, out, err = run("recommend", f"--workdir={workdir}", *keys, "--top_k=3")
  assert status == 0, err
  assert out == shown(workdir, capsys, user_key=[user_key(7), user_key(2)])
  keys = f"--history_keys={ITEM_KEYS[0]} B0"
  line = refused("recommend", f"--workdir={workdir}", keys)
  assert "--history_keys: item 'B0' is not known; expected one of 40 keys such as" in line
  says = "--user_key: user 'A1' is not known; expected one of 60 keys such as 'A1 "
  with pytest.raises(UserError, match=says):
    shown(workdir, capsys, user_key=["A1"])


def test_keys_that_the_data_set_does_not_keep_are_refused(trained, capsys):
  with pytest.raises(UserError, match="--user_key: .*/synthetic holds no keys of users"):
    shown(trained, capsys, user_key=["A1"])
  with pytest.raises(UserError, match="--history_keys: .*/synthetic holds no keys of items"):
    shown(trained, capsys, history_keys="B0")


def test_mistakes_of_recommend_are_one_line(workdir, tmp_path):
  recommend = ("recommend", f"--workdir={workdir}")
  output = f"--output={tmp_path}/recs.parquet"
  line = refused(*recommend, "--all_users", output, "--user=1")
  assert "expected one of --history, " in line and "found --user and --all_users" in line
  assert "one of --history, " in refused(*recommend)
  assert "--all_users and --output=FILE belong together" in refused(*recommend, "--all_users")
  assert "--all_users and --output=FILE belong together" in refused(*recommend, "--user=1", output)
  line = refused(*recommend, "--user=1", "--model=blend")
  assert f"{workdir}/blend.safetensors: no such file" in line
  line = refused(*recommend, "--user=1", "--split=test")
  assert "--split: belongs to --all_users" in line
  line = refused(*recommend, "--all_users", f"--output={tmp_path}/recs.txt")
  assert "expected a name that ends in .parquet or .jsonl or .csv" in line
  (tmp_path / "file").touch()
  line = refused(*recommend, "--all_users", f"--output={tmp_path}/file/recs.jsonl")
  assert f"{tmp_path}/file" in line and "not a directory" in line
  with pytest.raises(UserError, match="top_k=41: expected a number from 1 to 40"):
    everyone(workdir, tmp_path / "recs.parquet", top_k=41)
  give_keys(workdir)
  with (workdir / "synthetic" / "users.jsonl").open("a") as file:
    file.write('{"key": "one more"}\n')
  with pytest.raises(UserError, match=r"users.jsonl: 61 lines; expected one for each of the 60"):
    everyone(workdir, tmp_path / "recs.parquet")
  of_four_items(workdir)
  with pytest.raises(UserError, match=r"synthetic: 4 items; .* was trained with 40"):
    everyone(workdir, tmp_path / "recs.parquet")
  assert not list(tmp_path.glob("recs*"))
