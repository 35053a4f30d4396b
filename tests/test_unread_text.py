"""`train` prints a hint where items have titles but the configuration names no table of vectors."""

import json

import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.pipeline import describe_unread_text
from mmesid_jax.stages.workdir import open_workdir

NONE = {"features.text": "", "features.visual": "", "stages": ("counts", "content")}


def write_folder(folder, titles):
  folder.mkdir()
  users = [[1, 2, 3, 4], [2, 3, 4, 1], [3, 4, 1, 2], [4, 1, 2, 3]]
  lines = [" ".join(map(str, [user, *items])) for user, items in enumerate(users, 1)]
  (folder / "sequences.txt").write_text("\n".join(lines) + "\n")
  items = [{"item_id": i, "title": title} for i, title in enumerate(titles, 1)]
  (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


@pytest.fixture
def hint(tiny, tmp_path):
  """hint(titles, changes): the line, or None."""

  def describe(titles, changes=(), *, table=False):
    folder = tmp_path / "my shop"
    write_folder(folder, titles)
    if table:
      np.save(folder / "text.npy", np.eye(5, 3))
    source = {"data.source": "files", "data.dir": str(folder)}
    config = tiny(changes={**NONE, **source, **dict(changes)})
    return describe_unread_text(open_workdir(config, tmp_path / "run"))

  return describe


def test_titles_without_vectors_give_the_command(hint, tmp_path):
  line = hint([None, "tea", None, None])
  assert "\n" not in line
  command = (
    f"python -m mmesid_jax.encode --data='{tmp_path}/my shop' --modality=text --model=tfidf "
  )
  assert command in line and "--config.features.text=text.npy" in line


def test_a_table_that_is_there_is_to_be_named(hint):
  line = hint(["tea"] * 4, table=True)
  assert "my shop/text.npy is not read" in line and "encode" not in line


@pytest.mark.parametrize(
  "changes",
  [
    {"features.text": "text.npy"},
    {"features.visual": "clip.npy"},
    {"features.audio": "audio.npy"},
    {"features.collaborative": "own.npy"},
    {"stages": ("counts",)},
    {"stages": ("collaborative",)},
  ],
)
def test_where_a_table_is_named_or_none_is_read_nothing_is_said(hint, changes):
  assert hint(["tea"] * 4, changes) is None


def test_without_titles_nothing_is_said(hint):
  assert hint([None, "", None, None]) is None


def test_train_says_it_once(tiny, tmp_path, capsys):
  write_folder(tmp_path / "data", ["tea"] * 4)
  source = {"data.source": "files", "data.dir": str(tmp_path / "data"), "stages": ("content",)}
  pipeline.run_pipeline(tiny(changes={**NONE, **source}), tmp_path / "run")
  assert capsys.readouterr().out.count("encode --data=") == 1
