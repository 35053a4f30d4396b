"""Counts that are made again from later events: what is in them, who serves them, who does not."""

import collections
import json
import pathlib
import shutil

import numpy as np
import pytest
from commands import refused, run

from mmesid_jax import pipeline
from mmesid_jax.config.schema import STAGES
from mmesid_jax.data.dataset import training_events
from mmesid_jax.data.transitions import count_transitions
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.files.digest import file_sha256
from mmesid_jax.reports.test_ranks import evaluate_models
from mmesid_jax.serving.all_users import write_all_users
from mmesid_jax.serving.options import Options, open_recommender
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.serving.refreshed_counts import refresh_counts
from mmesid_jax.stages.blend_stage import BLEND, amounts_and_shares
from mmesid_jax.stages.evidence_stages import (
  item_shares,
  item_trends,
  make_model,
  search_evaluator,
)
from mmesid_jax.stages.workdir import open_workdir, reopen_workdir

FILE = "refreshed_counts.safetensors"
BEFORE, AFTER = 1, 29  # every user takes the second after the first by now


@pytest.fixture
def path(blended, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(blended, tmp_path / "copy"))


@pytest.fixture
def data(path, tmp_path) -> pathlib.Path:
  """The data of the workdir, later: two events more of every user, and two new users."""
  later = pathlib.Path(shutil.copytree(path / "synthetic", tmp_path / "later"))
  lines = (later / "sequences.txt").read_text().splitlines()
  lines = [f"{line} {BEFORE} {AFTER}" for line in lines] + ["901 2 4 6 8", f"902 {AFTER} 5 7"]
  (later / "sequences.txt").write_text("\n".join(lines) + "\n")
  return later


def sequences(folder: pathlib.Path) -> list[list[int]]:
  lines = (folder / "sequences.txt").read_text().splitlines()
  return [[*map(int, line.split()[1:])] for line in lines]


def test_they_are_those_of_a_loop_over_all_events(path, data):
  refresh_counts(path, data)
  tensors, header = read_artifact(path / FILE, "refreshed_counts")
  settings, histories = header["settings"], sequences(data)
  pairs, late, taken = (collections.Counter() for _ in range(3))
  for history in histories:
    for place, item in enumerate(history):
      taken[item] += 1
      late[item] += 0.8 ** (len(history) - 1 - place)
      for distance in range(1, min(settings["window"], place) + 1):
        pairs[history[place - distance], item] += distance ** -settings["distance_decay"]
  assert pairs[BEFORE, AFTER] >= 60
  found = {
    (a, int(b)): count
    for a, rows in enumerate(zip(tensors["follower"], tensors["count"], strict=True))
    for b, count in zip(*rows, strict=True)
    if count > 0
  }
  assert found == pytest.approx(dict(pairs), rel=1e-5)
  events, all_late = sum(taken.values()), sum(late.values())
  items = np.arange(1, 41)
  share = [(taken[i] + 1) / (events + 40) for i in items]
  np.testing.assert_allclose(tensors["share"][1:], share, rtol=1e-5)
  trend = [np.log((late[i] + 0.1) / (taken[i] * all_late / events + 0.1)) for i in items]
  np.testing.assert_allclose(tensors["trend"][1:], trend, rtol=1e-4, atol=1e-6)
  assert (header["users"], header["events"]) == (62, events)


def test_they_are_those_of_a_run_that_trains_on_all_of_these_events(path, data, tmp_path, tiny):
  """Two further events of every user are held out there."""
  refresh_counts(path, data)
  tensors, header = read_artifact(path / FILE, "refreshed_counts")
  blend, _ = read_artifact(path / "blend.safetensors", "blend")
  lines = (data / "sequences.txt").read_text().splitlines()
  (data / "sequences.txt").write_text("".join(f"{line} 3 3\n" for line in lines))
  config = tiny(changes={"data.source": "files", "data.dir": str(data)})
  workdir, settings = open_workdir(config, tmp_path / "run"), header["settings"]
  item_E, user_E = training_events(workdir.dataset)
  sizes = {"window": settings["window"], "decay": settings["distance_decay"], "followers": 512}
  table = count_transitions(item_E, user_E, 40, **sizes)
  expected = {"follower": table.follower_IK, "count": table.count_IK}
  expected |= {"share": item_shares(item_E, 40), "trend": item_trends(item_E, user_E, 40)}
  model = make_model({**blend, **expected}, settings)
  amount_E, share_E = amounts_and_shares(model, search_evaluator(workdir, BLEND))
  expected |= {"amounts": amount_E, "shares": share_E}
  assert tensors.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_allclose(tensors[name], x, rtol=1e-5, err_msg=name)


def test_recommend_serves_them_with_the_network_as_it_was(path, data):
  def parts(item):
    (answer,) = Recommender.load(path).recommend([[7, BEFORE]], top_k=38)
    (found,) = (r.parts for r in answer if r.item == item)
    return found

  before = parts(AFTER)
  alone = Recommender.load(path, model="network").recommend([[7, BEFORE]], top_k=38)
  refresh_counts(path, data)
  after = parts(AFTER)
  assert after["transitions"] > before["transitions"] + 1
  assert after["trend"] != before["trend"] or not before["trend"]
  assert after["similar text"] == pytest.approx(before["similar text"], abs=1e-6)
  network = ("identity", "collaborative", "text")
  ratios = [after[part] / before[part] for part in network]  # one weight for all of it
  np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
  again = Recommender.load(path, model="network").recommend([[7, BEFORE]], top_k=38)
  assert [(r.item, r.score) for r in again[0]] == [(r.item, r.score) for r in alone[0]]
  (path / FILE).unlink()
  assert parts(AFTER) == before


def test_the_share_of_a_user_is_among_those_of_now(path, data):
  """Half of the users have less evidence than the one in the middle, by the new counts too."""
  refresh_counts(path, data)
  model = Recommender.load(path).model
  rows = [h[::-1][:50] for h in sequences(data) if len(h) >= 3]
  history_QX = np.zeros((len(rows), 50), np.int32)
  for q, row in enumerate(rows):
    history_QX[q, : len(row)] = row
  share_Q = np.sort(np.asarray(model.share(history_QX)))
  np.testing.assert_allclose(share_Q, np.linspace(0, 1, len(rows)), atol=0.1)


def test_training_and_evaluation_do_not_see_them(path, data, tiny):
  figures = evaluate_models(reopen_workdir(path), "test")["models"]
  files = {file: file_sha256(file) for file in path.glob("*.safetensors")}
  refresh_counts(path, data)
  pipeline.run_pipeline(tiny(changes={"stages": STAGES}), path)
  assert {file: file_sha256(file) for file in files} == files
  assert json.loads((path / "evaluation.json").read_text())["models"] == figures


def test_lists_before_held_out_items_refuse_them(path, data, tmp_path):
  refresh_counts(path, data)
  output = tmp_path / "recs.jsonl"
  with pytest.raises(UserError, match=f"--split=test: .*{FILE} counts the held-out items, too"):
    write_all_users(path, output, Options(top_k=3), "test")
  write_all_users(path, output, Options(top_k=3, model="network"), "test")
  assert len(output.read_text().splitlines()) == 60


def test_they_belong_to_one_blend(path, data):
  refresh_counts(path, data)
  tensors, header = read_artifact(path / "blend.safetensors", "blend")
  write_artifact(path / "blend.safetensors", tensors, header | {"fingerprint": "other"})
  with pytest.raises(UserError, match=f"{FILE}: made for another blend .* mmesid_jax.refresh"):
    Recommender.load(path)
  Recommender.load(path, model="network")


def test_a_data_set_that_continues_nothing_is_refused_and_changes_nothing(path, data):
  refresh_counts(path, data)
  before = (path / FILE).read_bytes()
  user, _, *others = (data / "sequences.txt").read_text().split(" ")
  (data / "sequences.txt").write_text(" ".join([user, "40", *others]))
  says = f"{data}: has item 40 as number 1 of user 1 .*; expected the data of {path}/synthetic"
  with pytest.raises(UserError, match=says):
    refresh_counts(path, data)
  assert (path / FILE).read_bytes() == before


def item_lines(folder: pathlib.Path, change) -> None:
  """Changes the lines of items.jsonl, a list of mappings, in place."""
  file = folder / "items.jsonl"
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  change(lines)
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def reverse(field: str):
  def change(lines: list[dict]) -> None:
    values = [line[field] for line in lines]
    for line, value in zip(lines, reversed(values), strict=True):
      line[field] = value

  return change


def give_keys(lines: list[dict]) -> None:
  for line in lines:
    line["key"] = f"sku{line['item_id']}"


def test_other_items_are_refused_by_their_keys(path, data):
  for folder in (path / "synthetic", data):
    item_lines(folder, give_keys)
  refresh_counts(path, data)
  before = (path / FILE).read_bytes()
  item_lines(data, reverse("key"))
  with pytest.raises(UserError, match="later: has item 1 with the key 'sku40' instead of 'sku1'; "):
    refresh_counts(path, data)
  assert (path / FILE).read_bytes() == before


def test_other_titles_are_said(path, data, capsys):
  item_lines(data, reverse("title"))
  refresh_counts(path, data)
  (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
  assert f"{data}: 40 of 40 items have another title" in line
  (data / "items.jsonl").unlink()
  refresh_counts(path, data)
  assert "neither keys nor titles" in capsys.readouterr().err


def test_a_workdir_without_a_blend_is_refused(workdir):
  with pytest.raises(UserError, match="blend.safetensors: no such file; run mmesid_jax.train"):
    refresh_counts(workdir, workdir / "synthetic")


def test_newer_histories_need_no_warning_once_they_are_counted(path, data, capsys):
  """The data of a run from plain files, which may move."""
  config = json.loads((path / "config.json").read_text())
  config["data"] |= {"source": "files", "dir": str(path / "synthetic")}
  (path / "config.json").write_text(json.dumps(config))
  options = Options(data_dir=str(data))
  open_recommender(path, options)
  assert "holds other users" in capsys.readouterr().err
  refresh_counts(path, data, str(path / "synthetic"))
  capsys.readouterr()
  open_recommender(path, options)
  assert "holds other users" not in capsys.readouterr().err


def test_from_the_command_line(path, data):
  status, out, err = run("refresh", f"--workdir={path}", f"--data={data}")
  assert status == 0, err
  events = sum(map(len, sequences(path / "synthetic")))
  assert f"counts of {events + 127:,} events (127 new) of 62 users (2 new)" in out
  line = refused("refresh", f"--workdir={path}", f"--data={data}/nowhere")
  assert "nowhere: no such directory" in line
