"""push and pull: what others get, what they do not, and what is refused."""

import json
import os
import shutil
import types
import warnings
import zipfile

import huggingface_hub
import pytest
import yaml
from commands import refused, run

from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.reports import shared_workdir
from mmesid_jax.reports.shared_workdir import NAMES, read_shared, upload, write_shared
from mmesid_jax.serving import Ranker, Recommender

HISTORIES = [[1, 2, 3], [], [7, 40]]


@pytest.fixture(scope="module")
def pushed(blended, tmp_path_factory):
  path = tmp_path_factory.mktemp("pushed") / "model"
  write_shared(blended, path, with_data=True)
  return path


def files(folder) -> set[str]:
  return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_workdir_that_was_pulled_answers_as_the_first(blended, pushed, tmp_path):
  read_shared(pushed, tmp_path / "pulled")
  first, pulled = Recommender.load(blended), Recommender.load(tmp_path / "pulled")
  assert pulled.recommend(HISTORIES, 5) == first.recommend(HISTORIES, 5)
  users = first.workdir.dataset.users[:2].tolist()
  assert pulled.recommend(users=users, top_k=5) == first.recommend(users=users, top_k=5)
  again = tmp_path / "again"
  write_shared(tmp_path / "pulled", again, with_data=True)
  assert files(again) == files(pushed)
  for name in files(pushed) - {"README.md"}:  # its title is the name of the folder
    assert (again / name).read_bytes() == (pushed / name).read_bytes(), name


def test_a_file_holds_the_same_and_has_the_same_bytes_each_time(blended, pushed, tmp_path):
  for name in ("one.zip", "two.zip"):
    write_shared(blended, tmp_path / name, with_data=True)
  assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
  with pytest.raises(UserError, match="one.zip: exists already"):
    write_shared(blended, tmp_path / "one.zip", with_data=True)
  read_shared(tmp_path / "one.zip", tmp_path / "pulled")
  assert files(tmp_path / "pulled") == files(pushed)
  assert Recommender.load(tmp_path / "pulled").recommend(HISTORIES, 5)


def test_without_data_no_history_and_no_name_leaves(blended, tmp_path):
  write_shared(blended, tmp_path / "copy", with_data=False)
  assert not [name for name in files(tmp_path / "copy") if name.startswith("data")]
  titles = Recommender.load(blended).titles[1:]
  read_shared(tmp_path / "copy", tmp_path / "pulled")
  for name in files(tmp_path / "copy"):
    content = (tmp_path / "copy" / name).read_bytes()
    assert not any(title.encode() in content for title in titles), name
    assert os.fsencode(blended) not in content and os.fsencode(blended.parent) not in content, name
  top = Ranker.load(tmp_path / "pulled").top_items(HISTORIES, 5)
  expected = Ranker.load(blended).top_items(HISTORIES, 5)
  assert (top.item_EA == expected.item_EA).all()
  with pytest.raises(UserError, match="pulled/data"):
    Recommender.load(tmp_path / "pulled")
  data = str(blended / "synthetic")
  named = Recommender.load(tmp_path / "pulled", data_dir=data).recommend(HISTORIES, 5)
  assert named == Recommender.load(blended).recommend(HISTORIES, 5)


def test_no_path_of_this_machine_leaves(blended, tmp_path):
  """From the configuration, both evaluations, and the headers of artifacts."""
  path = shutil.copytree(blended, tmp_path / "run")
  secret = "/home/ann/secret"
  config = json.loads((path / "config.json").read_text())
  config["features"]["text"] = f"{secret}/text.npy"
  config["recommender"]["lora"]["start"] = f"{secret}/adapter"
  config["data"] |= {"source": "files", "dir": secret}
  (path / "config.json").write_text(json.dumps(config))
  evaluation = json.loads((path / "evaluation.json").read_text())
  evaluation["config"]["features.text"] = f"{secret}/text.npy"
  for name in ("evaluation.json", "evaluation_valid.json"):
    (path / name).write_text(json.dumps(evaluation))
  tensors, header = read_artifact(path / "semantic_ids.safetensors", "semantic_ids")
  header["config"]["features.text"] = f"{secret}/text.npy"
  write_artifact(path / "semantic_ids.safetensors", tensors, header)
  write_shared(path, tmp_path / "copy", with_data=False)
  assert {"semantic_ids.safetensors", "evaluation_valid.json"} <= files(tmp_path / "copy")
  for name in files(tmp_path / "copy"):
    assert b"secret" not in (tmp_path / "copy" / name).read_bytes(), name
  copied, new = read_artifact(tmp_path / "copy" / "semantic_ids.safetensors", "semantic_ids")
  assert new["config"]["features.text"] == "text.npy"
  assert all((copied[name] == x).all() for name, x in tensors.items())


@pytest.mark.parametrize("name", ["environment.json", "semantic_ids.safetensors", "ranks"])
def test_a_link_in_a_workdir_publishes_nothing(blended, tmp_path, name):
  path = shutil.copytree(blended, tmp_path / "run")
  (tmp_path / "private").write_text("key")
  if name == "ranks":  # is not copied
    shutil.rmtree(path / name)
    (path / name).symlink_to(tmp_path)
    write_shared(path, tmp_path / "copy", with_data=False)
    assert not (tmp_path / "copy" / name).exists()
    return
  (path / name).unlink()
  (path / name).symlink_to(tmp_path / "private")
  with pytest.raises(UserError, match="private, out of its directory"):
    write_shared(path, tmp_path / "copy", with_data=False)
  assert not (tmp_path / "copy").exists()


def test_an_evaluation_of_another_form_is_one_line(blended, tmp_path):
  path = shutil.copytree(blended, tmp_path / "run")
  for text in ('{"models": {}}', '{"models": []}', '{"models": {"a": {"masked": 1}}}'):
    (path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match="evaluation.json: is not as evaluate writes it"):
      write_shared(path, tmp_path / "copy", with_data=False)


def test_a_model_with_a_checkpoint_asks_for_it(blended, tmp_path):
  path = shutil.copytree(blended, tmp_path / "run")
  config = json.loads((path / "config.json").read_text())
  config["recommender"]["backbone"] |= {"checkpoint": "/models/Llama-X", "kind": "lora"}
  (path / "config.json").write_text(json.dumps(config))
  write_shared(path, tmp_path / "copy", with_data=False)
  card = (tmp_path / "copy" / "README.md").read_text()
  assert "--checkpoint=DIR" in card and "the pretrained Llama-X, LoRA" in card
  for given, says in ((None, "needs the checkpoint 'Llama-X'"), ("none", "none: no such folder")):
    with pytest.raises(UserError, match=says):
      read_shared(tmp_path / "copy", tmp_path / "pulled", checkpoint=given)
  (tmp_path / "llama").mkdir()
  read_shared(tmp_path / "copy", tmp_path / "pulled", checkpoint=str(tmp_path / "llama"))
  saved = json.loads((tmp_path / "pulled" / "config.json").read_text())
  assert saved["recommender"]["backbone"]["checkpoint"] == str(tmp_path / "llama")


def test_the_card_shows_the_figures_of_the_evaluation(blended, pushed):
  card = (pushed / "README.md").read_text()
  _, header, text = card.split("---\n", 2)
  about = yaml.safe_load(header)
  assert about["library_name"] == "mmesid_jax"
  evaluation = json.loads((blended / "evaluation.json").read_text())
  metrics = about["model-index"][0]["results"][0]["metrics"]
  assert len(metrics) == len(evaluation["models"]) * 2 * 4
  for metric in metrics:
    model, rest = metric["name"].split(": ")
    protocol, name = metric["type"].split(" ")
    assert rest == f"{name} ({protocol})"
    mean = evaluation["models"][model][protocol][name]["mean"]
    assert metric["value"] == pytest.approx(mean, abs=5e-5)
    assert f"{mean:.4f} [" in text
  assert "sequences.txt" in text and "pull --repo=" in text
  assert max(map(len, text.splitlines())) < 1000


def test_what_is_not_of_a_workdir_is_not_copied(pushed, tmp_path):
  source = shutil.copytree(pushed, tmp_path / "source")
  (source / "setup.py").write_text("raise SystemExit\n")
  (source / "data" / "extra.bin").write_bytes(b"x")
  read_shared(source, tmp_path / "pulled")
  assert files(tmp_path / "pulled") == files(pushed)


def test_copies_that_are_not_whole_are_refused_and_leave_nothing(pushed, tmp_path):
  def changed(change):
    source = shutil.copytree(pushed, tmp_path / "source")
    change(source)
    with pytest.raises(UserError) as error:
      read_shared(source, tmp_path / "pulled")
    shutil.rmtree(source)
    assert not (tmp_path / "pulled").exists() and "\n" not in str(error.value)
    return str(error.value)

  def link(source):
    (source / "README.md").unlink()
    (source / "README.md").symlink_to("/etc/hostname")

  assert "config.json: no such file" in changed(lambda s: (s / "config.json").unlink())
  missing = changed(lambda s: (s / "recommender.safetensors").unlink())
  assert "holds no recommender.safetensors" in missing
  assert "blend" in changed(lambda s: (s / "blend.safetensors").write_bytes(b"torn"))
  assert "is a link to /etc/hostname" in changed(link)


@pytest.mark.parametrize("name", ["../out", "/out", "data/../../out", "setup.py", "model.pkl"])
def test_a_file_with_other_names_is_not_unpacked(pushed, tmp_path, name):
  write = tmp_path / "bad.zip"
  with zipfile.ZipFile(write, "w") as archive:
    archive.write(pushed / "config.json", "config.json")
    archive.writestr(name, "x")
  with pytest.raises(UserError, match="is not as push writes it .*; nothing was unpacked"):
    read_shared(write, tmp_path / "pulled")
  assert [entry.name for entry in tmp_path.iterdir()] == ["bad.zip"]


def test_a_file_that_grows_or_is_torn_is_refused(pushed, tmp_path):
  with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("config.json", " " * 10**6)
  write = tmp_path / "torn.zip"
  with zipfile.ZipFile(write, "w") as archive:
    archive.write(pushed / "config.json", "config.json")
  write.write_bytes(write.read_bytes()[:-30])
  with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
    for _ in range(2):
      with warnings.catch_warnings(action="ignore"):
        archive.write(pushed / "config.json", "config.json")
  with zipfile.ZipFile(tmp_path / "early.zip", "w") as archive:
    archive.write(pushed / "config.json", "config.json")
  content = bytearray((tmp_path / "early.zip").read_bytes())
  content[-6:-2] = (len(content) + 1000).to_bytes(4, "little")  # where the list of members begins
  (tmp_path / "early.zip").write_bytes(content)
  for name, says in (
    ("bomb", "is not as push"),
    ("torn", "is damaged, or no file of push"),
    ("twice", "is damaged, or no file of push"),
    ("early", "is damaged, or no file of push"),
  ):
    with pytest.raises(UserError, match=says):
      read_shared(tmp_path / f"{name}.zip", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_hub_gets_the_same_files_in_a_private_repository(blended, pushed, monkeypatch, tmp_path):
  hub = tmp_path / "hub"
  made = {"is_private": True}

  class Hub:
    def create_repo(self, repo, *, private, exist_ok):
      made.update(repo=repo, private=private, exist_ok=exist_ok)

    def repo_info(self, repo):
      return types.SimpleNamespace(private=made["is_private"])

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
      assert repo_id == made["repo"] and delete_patterns == list(NAMES)
      shutil.copytree(folder_path, hub)

  def snapshot(repo, *, revision, allow_patterns):
    assert (repo, revision, allow_patterns) == ("ann/model", "v1", list(NAMES))
    return str(hub)

  monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
  upload(blended, "ann/model", with_data=True, public=False)
  assert (made["repo"], made["private"], made["exist_ok"]) == ("ann/model", True, True)
  assert files(hub) == files(pushed)
  shared_workdir.download("ann/model", tmp_path / "pulled", revision="v1")
  assert Recommender.load(tmp_path / "pulled").recommend(HISTORIES, 5)
  made["is_private"] = False
  with pytest.raises(UserError, match="everybody can see it; pass --public"):
    upload(blended, "ann/model", with_data=True, public=False)
  shutil.rmtree(hub)
  upload(blended, "ann/model", with_data=False, public=True)
  assert made["private"] is False
  monkeypatch.undo()
  with pytest.raises(UserError, match="--repo=no such name: HFValidationError: Repo id"):
    upload(blended, "no such name", with_data=False, public=False)


def test_mistakes_of_push_and_pull_are_one_line(blended, pushed, tmp_path):
  push, pull = ("push", f"--workdir={blended}"), ("pull", f"--workdir={tmp_path}/new")
  assert "one of --output, --repo" in refused(*push)
  assert "found --output and --repo" in refused(*push, "--output=x", "--repo=a/b")
  assert "--public: belongs to --repo" in refused(*push, f"--output={tmp_path}/x", "--public")
  line = refused(*push, f"--output={tmp_path}/x", "--data_dir=y")
  assert "--data_dir: belongs to --with_data" in line
  assert "exists already; name a new directory" in refused(*push, f"--output={pushed}")
  line = refused("push", f"--workdir={tmp_path}", f"--output={tmp_path}/x")
  assert "config.json: no such file" in line
  assert "one of --source, --repo" in refused(*pull)
  assert "no such folder" in refused(*pull, f"--source={tmp_path}/none")
  assert "no such file" in refused(*pull, f"--source={tmp_path}/none.zip")
  line = refused(*pull, f"--source={pushed}", "--checkpoint=llama")
  assert "--checkpoint: " in line and "needs none" in line
  assert not list(tmp_path.iterdir())
  status, out, err = run(*push, f"--output={tmp_path}/model.zip")
  assert status == 0 and "without the data" in out, err
  status, out, err = run(*pull, f"--source={tmp_path}/model.zip")
  assert status == 0 and "a workdir, without data" in out, err
