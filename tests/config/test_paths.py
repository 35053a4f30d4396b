"""Paths on the command line: the home folder is found, and buckets are refused by the flag."""

import os
import pathlib
import re

import commands
import pytest

from mmesid_jax.config.named_configs import config_names, configs_dir, load_config
from mmesid_jax.config.paths import expand_paths, local_path
from mmesid_jax.config.schema import KEYS, default_config
from mmesid_jax.errors import UserError

FOREIGN = (
  "gs://bucket/x",
  "s3://bucket/x",
  "gs:/bucket/x",
  "https://host/x",
  "hdfs://x",
  "file:///x",
)
PACKAGE = pathlib.Path(commands.ROOT) / "mmesid_jax"


@pytest.fixture(autouse=True)
def home(monkeypatch):
  monkeypatch.setenv("HOME", "/home/ann")


def test_the_home_folder_is_found_and_other_paths_stay():
  assert local_path("~/x") == "/home/ann/x"
  assert local_path("~") == "/home/ann"
  for path in ("", "x", "./~x", "/x/~/y", "../a b", "C:x", "a:b", "x/gs://y"):
    assert local_path(path) == path
  with pytest.raises(ValueError, match="no user 'nobody-here'"):
    local_path("~nobody-here/x")


@pytest.mark.parametrize("path", FOREIGN)
def test_addresses_of_stores_are_refused(path):
  with pytest.raises(ValueError, match="only local paths"):
    local_path(path)


def test_names_that_are_not_utf8_are_refused(tmp_path):
  """Python holds such bytes as surrogates, which neither JSON nor a library in Rust takes."""
  name = os.fsdecode(b"out\xff.parquet")
  with pytest.raises(ValueError, match="the name is not UTF-8; rename the file or folder"):
    local_path(name)
  for text in ("ü.csv", "日本/x", "😀"):
    assert local_path(text) == text
  prepare = load_config(str(configs_dir() / "prepare.py"))
  prepare.events = f"a.csv,{os.fsdecode(bytes([0xFF]))}.csv"
  with pytest.raises(UserError, match="^--config.events=a.csv,.*: the name is not UTF-8"):
    expand_paths(prepare)
  for arguments in (
    ("recommend", "--all_users", f"--output={name}", f"--workdir={tmp_path}"),
    ("semantic_ids", "export", f"--workdir={tmp_path}", f"--output={name}"),
    ("evaluate", f"--workdir={name}", "--stage=semantic_ids"),
    ("prepare", "--config=prepare", f"--config.events={name}", f"--output={tmp_path}/x"),
    ("prepare", "--config=prepare", "--config.events=a.csv", f"--output={name}"),
  ):
    assert ": the name is not UTF-8; rename" in commands.refused(*arguments)
  assert not any(tmp_path.iterdir())


def test_every_key_that_holds_a_path_is_expanded():
  places = [k for k, row in KEYS.items() if re.search(r"folder|directory|file in", row.rule.text)]
  places += [k for k in KEYS if KEYS[k].meaning.startswith(("PEFT directory", "Folder"))]
  assert {"data.dir", "features.text", "recommender.lora.start"} <= set(places)
  for key in places:
    config = default_config()
    config.update_from_flattened_dict({key: "~/x"})
    expand_paths(config)
    assert config[key.split(".")[0]].to_json().count("/home/ann/x") == 1, key
    config.update_from_flattened_dict({key: "gs://bucket/x"})
    with pytest.raises(UserError, match=f"^--config.{key}=gs://bucket/x: only local paths"):
      expand_paths(config)


def test_keys_of_every_other_configuration_are_expanded():
  ablations = load_config(str(configs_dir() / "ablations.py"))
  ablations.base.data.dir = "~/x"
  expand_paths(ablations)
  assert ablations.base.data.dir == "/home/ann/x"
  prepare = load_config(str(configs_dir() / "prepare.py"))
  prepare.events, prepare.metadata = "~/a.csv,b.csv", "s3://bucket/x"
  with pytest.raises(UserError, match="^--config.metadata=s3://bucket/x: only local"):
    expand_paths(prepare)
  assert prepare.events == "/home/ann/a.csv,b.csv"
  for name in config_names():
    expand_paths(load_config(str(configs_dir() / f"{name}.py")))


def test_every_flag_of_a_folder_or_file_is_a_path():
  shown = 0
  for file in PACKAGE.glob("*.py"):
    text = file.read_text()
    defined = set(re.findall(r"paths\.define_paths?\(\s*\"(\w+)\"", text))
    for name in re.findall(
      r"(?<=[ \"])(\w+)=(?:DIR|FILE|FOLDER)\b", text.partition("GROUPS = {")[2]
    ):
      shown += 1
      assert name in defined or (file.stem, name) == ("plan", "config"), (file.stem, name)
  assert shown > 20


def test_commands_refuse_buckets_and_empty_paths_by_the_flag(tmp_path):
  workdir = tmp_path / "run"
  for arguments, flag in (
    (("train", "--config=quickstart", "--workdir=gs://bucket/run"), "--workdir=gs://bucket/run"),
    (
      ("train", "--config=own_data", f"--workdir={workdir}", "--config.data.dir=gs:/bucket/data"),
      "--config.data.dir=gs:/bucket/data",
    ),
    (("prepare", "--config=prepare", "--output=s3://bucket/x"), "--output=s3://bucket/x"),
  ):
    assert f"error: {flag}: only local paths" in commands.refused(*arguments)
  for arguments in (("train", "--workdir="), ("vectors", "join", "--vectors=")):
    flag = arguments[-1]
    assert commands.refused(*arguments) == f"error: {flag}: is empty; expected a path\n"
  assert not workdir.exists()
