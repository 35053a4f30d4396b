"""A damaged chosen.json of a refit ends in one line before anything trains."""

import json
import pathlib
import re

import pytest

from mmesid_jax import pipeline
from mmesid_jax.config.schema import STAGES
from mmesid_jax.errors import UserError

SETTINGS = {
  **{"window": 3, "distance_decay": 0.5, "recency": 0.6, "tail": 0.0, "tau": 1.0},
  **{"popularity": -0.04, "trend": 0.0, "repeats": 0.0},
}
OF_TEXT = {"text.width": 8, "text.recency": 0.6, "text.weight": 1.0}
GOOD = {
  "counts": {"settings": SETTINGS},
  "content": {"settings": SETTINGS | OF_TEXT},
  **{stage: {"epochs": 1} for stage in ("collaborative", "recommender")},
  "semantic_ids": {"epochs": 0},
  "blend": {"amounts": [1, 2.5], "shares": [0, 0.5], "weights": [0.1, 1], "newness": 0.1},
}
BAD = [
  ("collaborative", {}, "epochs=None, expected a whole number from 1 to 2"),
  ("collaborative", {"epochs": "x"}, "epochs='x', expected a whole number"),
  ("collaborative", {"epochs": True}, "epochs=True, expected a whole number"),
  ("recommender", {"epochs": -3}, "epochs=-3, expected a whole number from 1"),
  ("recommender", {"epochs": 0}, "epochs=0, expected a whole number from 1"),
  ("recommender", {"epochs": 10**9}, "epochs=1000000000, expected a whole number from 1 to 2"),
  ("semantic_ids", {"epochs": -1}, "epochs=-1, expected a whole number from 0 to 2"),
  ("counts", {}, "no settings.window"),
  ("counts", {"settings": 3}, "no settings.window"),
  ("counts", {"settings": SETTINGS | {"window": 10**9}}, "settings.window=1000000000, expected"),
  ("counts", {"settings": SETTINGS | {"tau": "a"}}, "settings.tau='a', expected a number > 0"),
  ("content", {"settings": SETTINGS}, "no settings.text.width"),
  ("content", {"settings": SETTINGS | OF_TEXT | {"text.width": 0}}, "settings.text.width=0"),
  ("blend", {}, "of an earlier version, or incomplete: it holds no amounts"),
  ("blend", GOOD["blend"] | {"newness": "a"}, "holds other things than numbers"),
  ("blend", GOOD["blend"] | {"newness": [0.1]}, "newness is float32 [1], expected float32 []"),
  ("blend", GOOD["blend"] | {"newness": None}, "newness is not finite"),
  ("blend", GOOD["blend"] | {"newness": 10**400}, "holds other things than numbers"),
  ("blend", GOOD["blend"] | {"amounts": [2, 1]}, "amounts holds 1 to 2, expected increasing"),
  ("blend", GOOD["blend"] | {"shares": [0]}, "shares is float32 [1], expected float32 [E = 2]"),
  (
    "blend",
    GOOD["blend"] | {"reranker.scale": 1},
    "of an earlier version, or incomplete: it holds no reranker",
  ),
]


@pytest.fixture
def train(tiny, tmp_path, monkeypatch):
  """train(chosen): begins a run in a refit's folder that holds this chosen.json."""
  begun = []
  monkeypatch.setattr(pipeline, "_run_stages", lambda *_: begun.append(True))
  monkeypatch.setattr(pipeline, "report_ranks", lambda *_: None)

  def make(chosen):
    (tmp_path / "refit").mkdir()
    (tmp_path / "refit" / "chosen.json").write_text(json.dumps(chosen))
    pipeline.run_pipeline(tiny(changes={"stages": STAGES}), tmp_path / "refit")
    return begun

  return make


@pytest.mark.parametrize(("stage", "chosen", "says"), BAD)
def test_what_no_run_chose_is_refused(train, tmp_path, stage, chosen, says):
  line = f"{tmp_path}/refit/chosen.json: {stage}: {says}"
  with pytest.raises(UserError, match=re.escape(line)) as caught:
    train(GOOD | {stage: chosen})
  assert str(caught.value).endswith(f"; train {tmp_path} again with --refit")


def test_what_a_run_can_choose_is_taken(train):
  assert train(GOOD)


def test_the_first_run_is_named_in_full(train, tmp_path, monkeypatch, tiny):
  with pytest.raises(UserError):
    train(GOOD | {"blend": {}})
  monkeypatch.chdir(tmp_path / "refit")
  with pytest.raises(UserError, match=f"; train {tmp_path} again with --refit"):
    pipeline.run_pipeline(tiny(changes={"stages": STAGES}), pathlib.Path())


def test_a_damaged_mark_of_a_begun_stage_is_that_of_another_run(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(pipeline, "_run_stages", lambda *_: pytest.fail("it trains"))
  (tmp_path / "config.json").write_text(tiny().to_json_best_effort())
  (tmp_path / "collaborative").mkdir()
  (tmp_path / "collaborative" / "fingerprint").write_bytes(b"\xff\n")
  with pytest.raises(UserError, match="stage collaborative was made from other .* --overwrite"):
    pipeline.run_pipeline(tiny(), tmp_path)
