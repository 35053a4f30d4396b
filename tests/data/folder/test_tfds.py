"""A prepared folder becomes a TensorFlow dataset and, byte for byte, itself again, all without
TensorFlow."""

import filecmp
import json
import pathlib
import shutil
import sys
import types

import commands
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax import pipeline
from mmesid_jax.data.folder import tfds_examples, tfds_reader, tfds_shards
from mmesid_jax.data.folder.writer import item_line, sequence_line, user_line
from mmesid_jax.errors import UserError
from mmesid_jax.ingest import prepared_folder
from mmesid_jax.ingest.catalogue import Catalogue, Item
from mmesid_jax.ingest.events import collect_events
from mmesid_jax.stages.registry import STAGES
from mmesid_jax.stages.workdir import open_workdir

PLAIN = ("sequences.txt", "users.jsonl", "items.jsonl", "times.npy")
ODD = ("a\0b\0", "\u2028 new\nline \x85", r"\ud800 as letters", "naïve 漢字 🛍", '"quoted" \\')


def prepared(folder: pathlib.Path, *, times: bool = True) -> pathlib.Path:
  """Twelve users, eleven items, every second of them described, by odd texts."""
  rng = np.random.default_rng(0)
  pairs = [(u, int(i)) for u in range(12) for i in rng.permutation(11)[: 5 + u % 4]]
  rows = (
    (
      f"u{u}{ODD[u % 5]}",
      f"i{i}{ODD[i % 5]}",
      (1_400_000_000 + 3600 * n) * 10**9 if times else None,
      np.nan,
    )
    for n, (u, i) in enumerate(pairs)
  )
  found = collect_events([("a.csv", rows)])
  catalogue = Catalogue(found.item_keys)
  catalogue.add(
    Item(
      f"i{i}{ODD[i % 5]}",
      title=ODD[i % 5],
      categories=["Beauty", ODD[i % 5]] if i % 4 else None,
      images=[f"https://example.org/{i}.jpg", "b.png"] if i % 3 else None,
    )
    for i in range(0, 11, 2)
  )
  folder.mkdir()
  prepared_folder.write_events(folder, found, catalogue)
  return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
  """A prepared folder with its TensorFlow dataset, of several shards. Read only."""
  folder = prepared(tmp_path_factory.mktemp("prepared") / "odd")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tfds_shards, "EXAMPLES", 4)
    prepared_folder.write_tfds(folder)
  return folder


@pytest.fixture
def copy(whole, tmp_path) -> pathlib.Path:
  """A copy of the TensorFlow dataset alone, to be damaged."""
  return pathlib.Path(shutil.copytree(whole / "tfds", tmp_path / "copy"))


def same_trees(a: pathlib.Path, b: pathlib.Path) -> bool:
  files = [sorted(p.relative_to(x) for p in x.rglob("*") if p.is_file()) for x in (a, b)]
  return files[0] == files[1] and all(filecmp.cmp(a / f, b / f, shallow=False) for f in files[0])


def test_the_plain_files_come_back_byte_for_byte(whole, tmp_path):
  tfds_reader.export_plain_files(whole, tmp_path / "plain")
  for name in PLAIN:
    assert (tmp_path / "plain" / name).read_bytes() == (whole / name).read_bytes(), name
  assert b'"title": null' in (whole / "items.jsonl").read_bytes()
  assert b"\\u0000" in (whole / "items.jsonl").read_bytes()
  assert "tensorflow" not in sys.modules


def test_without_times_there_are_none(tmp_path):
  folder = prepared(tmp_path / "timeless", times=False)
  prepared_folder.write_tfds(folder)
  tfds_reader.export_plain_files(folder, tmp_path / "plain")
  names = {*PLAIN[:3], tfds_reader.MARK}
  assert {path.name for path in (tmp_path / "plain").iterdir()} == names
  for name in PLAIN[:3]:
    assert (tmp_path / "plain" / name).read_bytes() == (folder / name).read_bytes()


def test_tfds_itself_reads_it_by_name(whole):
  import tensorflow_datasets as tfds

  def read(name):
    builder = tfds.builder(f"interactions/{name}", data_dir=whole / "tfds")
    assert builder.info.splits[name].num_shards == 3
    return [*builder.as_data_source(split=name)]

  users, items = read("users"), read("items")
  lines = (whole / "sequences.txt").read_text().splitlines()
  assert [[u["user_id"], *u["items"]] for u in users] == [[*map(int, x.split())] for x in lines]
  times = np.concatenate([u["times"] for u in users])
  np.testing.assert_array_equal(times, np.load(whole / "times.npy", allow_pickle=False))
  for found, line in zip(items, (whole / "items.jsonl").read_bytes().splitlines(), strict=True):
    item = json.loads(line)
    assert found["item_id"] == item["item_id"]
    assert found["key"].decode("utf-8", "surrogatepass") == item["key"]
    assert found["title"].decode("utf-8", "surrogatepass") == (item["title"] or "")
    assert len(found["categories"]) == len(item["categories"] or [])
  assert "tensorflow" not in sys.modules


def test_another_process_writes_the_same_bytes(whole, tmp_path):
  trees = []
  for name in ("a", "b"):
    folder = tmp_path / name
    folder.mkdir()
    for file in PLAIN:
      shutil.copy(whole / file, folder)
    assert commands.run("prepare", f"--tfds={folder}")[0] == 0
    trees.append(folder / "tfds")
  assert same_trees(*trees)


def test_beam_writes_the_same_bytes(whole, tmp_path, monkeypatch):
  pytest.importorskip("apache_beam", reason="pip install apache-beam")
  from mmesid_jax.data.folder import tfds_builder as builder

  for file in PLAIN:
    shutil.copy(whole / file, tmp_path)
  monkeypatch.setattr(tfds_shards, "EXAMPLES", 4)
  assert same_trees(builder.write_tfds_dataset(tmp_path, "--runner=DirectRunner"), whole / "tfds")


TEXTS = st.text(min_size=1, max_size=6)
LISTS = st.lists(TEXTS, min_size=1, max_size=3)


@given(
  key=TEXTS,
  texts=st.fixed_dictionaries(dict.fromkeys(tfds_examples.TEXTS, st.none() | TEXTS)),
  lists=st.fixed_dictionaries(dict.fromkeys(tfds_examples.LISTS, st.none() | LISTS)),
)
def test_lines_of_any_text_come_back(key, texts, lists):
  line = item_line(7, key, texts | lists)
  assert tfds_examples.example_to_item_line(tfds_examples.item_example(line)) == line
  pair = sequence_line(3, [9, 1]), user_line(3, key)
  assert tfds_examples.example_to_user_lines(tfds_examples.user_example(*pair, None)) == pair


@pytest.mark.parametrize(
  ("name", "old", "new", "told"),
  [
    ("items.jsonl", b'"key"', b'"asin"', ":1: expected an object with item_id, key"),
    ("items.jsonl", b'"title": null', b'"title": ""', "where prepare writes"),
    ("items.jsonl", b'"title": null', b'"title": 5', "expected an object"),
    ("items.jsonl", b'"title": null', rb'"title": "\ud800"', ", of Unicode texts"),
    ("items.jsonl", b"}\n", b', "price": 3}\n', ":1: holds"),
    ("sequences.txt", b"\n3 ", b"\n33 ", "sequences.txt:3: holds"),
    ("sequences.txt", b"\n3 ", b"\n3  ", "times.npy"),
    ("sequences.txt", b"\n3 ", b"\nx ", "sequences.txt:3: expected `user item"),
    ("users.jsonl", b'{"user_id": 1,', b'{"user_id":1,', "sequences.txt:1: holds"),
    ("users.jsonl", b'{"user_id": 1,', b'\n{"user_id": 1,', "users.jsonl: 13 lines"),
    ("times.npy", b"<i8", b"<f8", "expected int64"),
    ("times.npy", b"\x93NUMPY", b"something", "not a plain .npy table"),
  ],
)
def test_what_prepare_would_not_have_written_is_refused(whole, tmp_path, name, old, new, told):
  """Otherwise the way back would silently give other files."""
  for file in PLAIN:
    shutil.copy(whole / file, tmp_path)
  data = (tmp_path / name).read_bytes()
  assert old in data
  (tmp_path / name).write_bytes(data.replace(old, new, 1))
  with pytest.raises(UserError) as refused:
    prepared_folder.write_tfds(tmp_path)
  assert told in str(refused.value)
  assert {path.name for path in tmp_path.iterdir()} == {*PLAIN}  # nothing is left behind


def cut_off(folder):
  path = next(folder.rglob("*users.array_record-00001*"))
  path.write_bytes(path.read_bytes()[:-1000])


def emptied(folder):
  next(folder.rglob("*items.array_record-00002*")).write_bytes(b"")


def flipped(folder):
  path = next(folder.rglob("*users.array_record-00000*"))
  data = bytearray(path.read_bytes())
  data[200:210] = bytes(10)
  path.write_bytes(data)


def swapped(folder):
  users, items = (next(folder.rglob(f"*{name}.array_record-00001*")) for name in ("users", "items"))
  shutil.copy(items, users)


def without_a_shard(folder):
  next(folder.rglob("*items.array_record-00000*")).unlink()


def info_of_users(**changes):
  """Damage: other values in the description of the first split."""

  def damage(folder):
    path = folder / "interactions" / "users" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0] |= changes
    path.write_text(json.dumps(info))

  return damage


@pytest.mark.parametrize(
  "damage",
  [
    *(cut_off, emptied, flipped, swapped, without_a_shard),
    info_of_users(shardLengths=["4", "4", "5"]),
    info_of_users(shardLengths=["4", "-4", "4"]),
    info_of_users(shardLengths=[]),
    info_of_users(shardLengths=["9" * 5000]),
    info_of_users(shardLengths=None),
    info_of_users(name="others"),
  ],
)
def test_what_is_damaged_is_told_in_one_line(copy, tmp_path, damage):
  damage(copy)
  with pytest.raises(UserError, match=r"1\.0\.0: damaged or incomplete \(.*\); copy it again"):
    tfds_reader.export_plain_files(copy, tmp_path / "plain")
  assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_no_code_runs_that_the_dataset_names(copy, tmp_path, monkeypatch):
  """TFDS itself would import the class of a feature, also from the folder of the data."""
  users = copy / "interactions" / "users" / "1.0.0"
  ran = tmp_path / "ran"
  program = f"open({str(ran)!r}, 'w').close()\n"
  for name in ("hostile", "interactions"):
    (users / f"{name}.py").write_text(program)
    (users.parent / f"{name}.py").write_text(program)
  monkeypatch.syspath_prepend(users)
  features = users / "features.json"
  hostile = features.read_text().replace(
    "tensorflow_datasets.core.features.text_feature", "hostile"
  )
  features.write_text(hostile)
  info = users / "dataset_info.json"
  info.write_text(info.read_text().replace("mmesid_jax.data.folder.tfds_builder", "hostile"))
  tfds_reader.export_plain_files(copy, tmp_path / "plain")
  assert (tmp_path / "plain" / "sequences.txt").is_file()
  assert not ran.exists()


def test_the_dataset_is_found_or_one_line_says_what_is_missing(copy, tmp_path):
  users = copy / "interactions" / "users" / "1.0.0"
  assert (
    tfds_reader.find_config_folder(copy.parent, "users")
    == tfds_reader.find_config_folder(users, "users")
    == users
  )
  with pytest.raises(UserError, match="interactions/items.*found no dataset_info.json of one"):
    tfds_reader.find_config_folder(users, "items")
  shutil.copytree(copy, tmp_path / "second")
  with pytest.raises(UserError, match="expected one dataset .* found .*copy/.*second/"):
    tfds_reader.find_config_folder(tmp_path, "users")
  info = users / "dataset_info.json"
  info.write_text(info.read_text().replace('"version": "1.0.0"', '"version": "2.0.0"'))
  with pytest.raises(UserError, match=r"version 2\.0\.0; expected 1\.x"):
    tfds_reader.find_config_folder(copy, "users")
  info.write_text("{")
  with pytest.raises(UserError, match="dataset_info.json: not JSON"):
    tfds_reader.find_config_folder(copy, "users")


def test_it_is_exported_once_and_again_when_it_changes(copy, whole, tmp_path):
  plain = tmp_path / "plain"
  tfds_reader.export_plain_files(copy, plain)
  first = (plain / "items.jsonl").stat().st_ino
  tfds_reader.export_plain_files(copy, plain)
  assert (plain / "items.jsonl").stat().st_ino == first
  other = prepared(tmp_path / "other", times=False)
  prepared_folder.write_tfds(other)
  tfds_reader.export_plain_files(other, plain)
  assert not (plain / "times.npy").exists()
  assert (plain / "users.jsonl").read_bytes() == (other / "users.jsonl").read_bytes()


def both_ways(whole, tiny, tmp_path):
  """By source, a configuration that reads the same folder: data and a table within it."""
  folder = shutil.copytree(whole, tmp_path / "data")
  table_IV = np.random.default_rng(1).normal(size=(12, 8)).astype(np.float32)
  np.save(folder / "text.npy", table_IV)
  changes = {"data.dir": str(folder), "recommender.whiten": 4, "semantic_ids.batch": 8}
  return {kind: tiny(changes={**changes, "data.source": kind}) for kind in ("files", "tfds")}


def test_every_stage_takes_it_for_the_plain_files(whole, tiny, tmp_path):
  configs = both_ways(whole, tiny, tmp_path)
  files, tfds = (open_workdir(config, tmp_path / k) for k, config in configs.items())
  for stage in ("collaborative", "semantic_ids", "recommender"):
    assert STAGES[stage].fingerprint(files) == STAGES[stage].fingerprint(tfds)
  for name in ("items.npy", "offsets.npy", "users.npy"):
    assert filecmp.cmp(tmp_path / "files/dataset" / name, tmp_path / "tfds/dataset" / name, False)
  assert any(tfds.dataset.titles()) and tfds.dataset.titles() == files.dataset.titles()
  assert tfds.dataset.items_path == str(tmp_path / "tfds" / "plain" / "items.jsonl")
  for workdir in (files, tfds):
    workdir.config.features.collaborative = ""  # or a trained stage would have to give it
  np.testing.assert_array_equal(tfds.features()["text"], files.features()["text"])
  configs["tfds"].data.dir = ""
  with pytest.raises(UserError, match="name the folder that holds the TensorFlow dataset"):
    pipeline.check_config(configs["tfds"])


@pytest.mark.slow
def test_training_from_it_gives_the_same_bytes(whole, tiny, tmp_path):
  artifacts = []
  for kind, config in both_ways(whole, tiny, tmp_path).items():
    config.stages = ("collaborative",)
    run = pipeline.run_pipeline(config, tmp_path / kind)
    artifacts.append(run.artifact("collaborative").read_bytes())
  assert artifacts[0] == artifacts[1]


def test_a_full_disk_is_one_line_and_leaves_nothing(whole, tmp_path, monkeypatch):
  """TFDS asks for the free space first, and its error has no number."""
  shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns("tfds"))
  before = sorted((tmp_path / "copy").iterdir())
  monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=0))
  with pytest.raises(UserError, match="copy/tfds: no space left on device$"):
    prepared_folder.write_tfds(tmp_path / "copy")
  assert sorted((tmp_path / "copy").iterdir()) == before


def test_what_is_there_is_not_replaced(whole, tmp_path):
  with pytest.raises(UserError, match="tfds: exists; delete it"):
    prepared_folder.write_tfds(whole)
  with pytest.raises(UserError, match="sequences.txt: cannot be read .no such file"):
    prepared_folder.write_tfds(tmp_path / "none")


def test_the_commands(tmp_path):
  events, output = tmp_path / "events.csv", tmp_path / "out"
  events.write_text("user,item,time\n" + "".join(f"u{n % 3},i{n % 4},{n}\n" for n in range(24)))
  arguments = ("--config=configs/prepare.py", f"--config.events={events}", "--config.tfds=True")
  status, _, err = commands.run("prepare", *arguments, f"--output={output}")
  assert status == 0, err
  assert (
    tfds_reader.find_config_folder(output, "users")
    == output / "tfds" / "interactions" / "users" / "1.0.0"
  )
  told = commands.refused("prepare", *arguments, "--output=b", "--beam=--runner=DirectRunner")
  assert "by --tfds" in told
  train = ("--config=configs/quickstart.py", "--config.data.source=tfds", f"--workdir={tmp_path}/w")
  told = commands.refused("train", *train, f"--config.data.dir={tmp_path / 'none'}")
  assert "expected one dataset interactions/users" in told
