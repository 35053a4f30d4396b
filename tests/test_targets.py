"""Data in which nobody can be evaluated is refused before anything trains."""

import pytest

from mmesid_jax import pipeline
from mmesid_jax.data.folder.check import check_folder
from mmesid_jax.errors import UserError


@pytest.fixture
def short(tmp_path):
  """A folder of 30 users with two items each."""
  lines = [f"{u} {1 + u % 20} {1 + (u + 1) % 20}\n" for u in range(1, 31)]
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "sequences.txt").write_text("".join(lines))
  return tmp_path / "data"


@pytest.mark.parametrize("stage", ["counts", "collaborative"])
def test_nobody_with_three_items_stops_before_a_stage_begins(
  short, tiny, tmp_path, monkeypatch, stage
):
  monkeypatch.setattr(pipeline, "_run_stages", lambda *_: pytest.fail("it trains"))
  data = {"data.source": "files", "data.dir": str(short), "features.text": ""}
  config = tiny(changes={**data, "stages": (stage,)})
  with pytest.raises(UserError, match=f"{short}: no user has a valid target; the leave-one-out"):
    pipeline.run_pipeline(config, tmp_path / "run")


def test_the_check_says_so(short, capsys):
  with pytest.raises(UserError, match="cannot be used for training because of a mistake"):
    check_folder(short)
  assert "sequences.txt: no user has a validation or test target" in capsys.readouterr().out
  (short / "sequences.txt").write_text("1 1 2 3\n2 1 2\n")
  check_folder(short)
