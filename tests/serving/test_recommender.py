"""Recommendations from Python: what comes back, and what is refused."""

import os
import shutil

import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.serving import recommender
from mmesid_jax.serving.answer import HISTORIES as SOURCES
from mmesid_jax.serving.answer import print_recommendations
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.serving.served_model import Options


@pytest.fixture(scope="module")
def model(trained) -> Recommender:
  return Recommender.load(trained)


HISTORIES = [[1, 2, 3], [], [7], list(range(1, 36)), [40, 40, 5]]


def test_answers_are_ranked_items_outside_the_history_with_their_reasons(model):
  for history, answer in zip(HISTORIES, model.recommend(HISTORIES, top_k=5), strict=True):
    items = [r.item for r in answer]
    assert len(items) == len(set(items)) == 5
    assert all(1 <= i <= 40 for i in items) and not set(items) & set(history)
    assert [r.score for r in answer] == sorted((r.score for r in answer), reverse=True)
    for r in answer:
      assert list(r.parts) == ["identity", "collaborative", "text"]
      assert sum(r.parts.values()) == pytest.approx(r.score, abs=1e-5) and all(r.parts.values())


def test_items_of_the_history_return_when_asked_for(model):
  (everything,) = model.recommend([[1, 2, 3]], top_k=40, repeat=True)
  assert sorted(r.item for r in everything) == list(range(1, 41))
  (without,) = model.recommend([[1, 2, 3]], top_k=40)
  assert [r.item for r in without] == [r.item for r in everything if r.item > 3]


def test_many_histories_are_answered_as_each_alone(model):
  many = [[1 + (7 * n + k) % 40 for k in range(n % 9)] for n in range(150)]
  together = model.recommend(many, top_k=3)
  for n in (0, 63, 64, 149):
    (alone,) = model.recommend([many[n]], top_k=3)
    assert [r.item for r in together[n]] == [r.item for r in alone]
    np.testing.assert_allclose([r.score for r in together[n]], [r.score for r in alone], rtol=1e-4)


def test_a_history_longer_than_a_row_is_read_from_its_newest_items(model):
  long = [1 + k % 20 for k in range(100)]
  (answer,) = model.recommend([long], top_k=20)
  (newest,) = model.recommend([long[-32:]], top_k=20)
  assert [r.item for r in answer] == [r.item for r in newest]
  assert min(r.item for r in answer) == 21  # all twenty items of the history stay left out


@pytest.mark.parametrize(
  ("history", "top_k", "says"),
  [([1, 41], 3, "item 41 is not in"), ([0], 3, "item 0 is not in"), ([1], 41, "top_k=41")],
)
def test_unknown_items_and_lengths_are_refused(model, history, top_k, says):
  with pytest.raises(UserError, match=says):
    model.recommend([[1], history], top_k=top_k)


def test_an_empty_answer_says_why(trained, capsys):
  everything = " ".join(map(str, range(1, 41)))
  print_recommendations(trained, "history", everything, Options())
  assert (
    "history: nothing is left to recommend; the history holds all 40" in capsys.readouterr().err
  )
  print_recommendations(trained, "history", everything, Options(repeat=True))
  out, err = capsys.readouterr()
  assert " 10. " in out and not err


def test_scores_that_are_not_finite_are_refused(model, monkeypatch):
  """Also where all numbers of the model are."""
  for value in (np.nan, np.inf):
    bad = recommender.TopItems(np.ones((64, 5), np.int32), np.full((64, 5), value, np.float32))
    monkeypatch.setattr(recommender, "_top_items", lambda *given, **options: bad)  # noqa: B023
    with pytest.raises(UserError, match="the scores of history 1 are not finite"):
      model.top_items([[1, 2], [3]], top_k=5)


def test_a_model_that_is_not_finite_is_refused(trained, tmp_path):
  shutil.copy(trained / "config.json", tmp_path)
  tensors, header = read_artifact(trained / "recommender.safetensors", "recommender")
  tensors["model.items.identity_ID"] = np.full_like(tensors["model.items.identity_ID"], np.nan)
  write_artifact(tmp_path / "recommender.safetensors", tensors, header)
  with pytest.raises(UserError, match="identity_ID holds values that are not finite"):
    Recommender.load(tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_of_histories_has_lines_as_editors_count_them(tmp_path, end):
  file = tmp_path / "histories.txt"
  text = end.join(["1 2", "", "3\x0b4\u20285 +6"])
  file.write_bytes(b"\xef\xbb\xbf" + text.encode())
  expected = [("line 1", [1, 2]), ("line 2", []), ("line 3", [3, 4, 5, 6])]
  assert SOURCES["histories"](None, str(file)) == expected
  file.write_text(text + end)
  assert SOURCES["histories"](None, str(file)) == expected


@pytest.mark.parametrize("word", ["1_2", "\u0663", "1.0", "0x1", "9" * 5000])
def test_an_item_is_a_number_of_digits(tmp_path, word):
  with pytest.raises(UserError, match="--history: .* is not a whole number"):
    SOURCES["history"](None, f"7 {word}")
  (tmp_path / "histories.txt").write_text(f"1\n{word}\n")
  with pytest.raises(UserError, match="histories.txt:2: .* is not a whole number"):
    SOURCES["histories"](None, str(tmp_path / "histories.txt"))


def test_what_is_no_file_of_histories_is_called_what_it_is(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for name, told in {"pipe": "is not a regular file", "none": "no such file"}.items():
    with pytest.raises(UserError, match=f"{name}: {told}"):
      SOURCES["histories"](None, str(tmp_path / name))
