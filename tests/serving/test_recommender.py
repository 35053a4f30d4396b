"""Recommendations from Python: what comes back, and what is refused."""

import json
import os
import shutil

import numpy as np
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.serving import ranker
from mmesid_jax.serving.answer import HISTORIES as SOURCES
from mmesid_jax.serving.answer import print_recommendations
from mmesid_jax.serving.options import Options
from mmesid_jax.serving.ranker import Ranker
from mmesid_jax.serving.recommender import Recommender


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
    bad = ranker.Ranked(np.ones((64, 5), np.int32), np.full((64, 5), value, np.float32), None)
    monkeypatch.setattr(ranker, "rank_items", lambda *given, **options: bad)  # noqa: B023
    with pytest.raises(UserError, match="the scores of history 1 are not finite"):
      model.top_items([[1, 2], [3]], top_k=5)


def test_a_model_that_is_not_finite_is_refused(trained, tmp_path):
  shutil.copy(trained / "config.json", tmp_path)
  tensors, header = read_artifact(trained / "recommender.safetensors", "recommender")
  tensors["model.items.identity_ID"] = np.full_like(tensors["model.items.identity_ID"], np.nan)
  write_artifact(tmp_path / "recommender.safetensors", tensors, header)
  with pytest.raises(UserError, match="identity_ID holds values that are not finite"):
    Ranker.load(tmp_path)


@pytest.fixture(scope="module")
def keyed(trained, tmp_path_factory) -> Recommender:
  """Items have the keys I1, I2, ..., users U1, U2, ..."""
  path = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "keyed")
  data = path / "synthetic"
  items = [json.loads(line) for line in (data / "items.jsonl").read_text().splitlines()]
  lines = [json.dumps({**item, "key": f"I{n}"}) for n, item in enumerate(items, 1)]
  (data / "items.jsonl").write_text("\n".join(lines))
  users = len((data / "sequences.txt").read_text().splitlines())
  (data / "users.jsonl").write_text("".join(f'{{"key": "U{n}"}}\n' for n in range(1, users + 1)))
  return Recommender.load(path)


def test_users_and_items_have_ids_and_keys(keyed):
  by_id = keyed.recommend([[3, 5], [7]], 4)
  assert keyed.recommend([["I3", 5], np.array([7])], top_k=4) == by_id
  assert keyed.recommend((tuple(h) for h in [("I3", "I5"), ("I7",)]), 4) == by_id
  for r in by_id[0]:
    assert r.key == f"I{r.item}" and r.title == keyed.titles[r.item] is not None
  users = keyed.workdir.dataset.users[[4, 0]].tolist()
  of_users = keyed.recommend(users=users, top_k=4)
  assert of_users == keyed.recommend(users=["U5", np.int64(users[1])], top_k=4)
  histories = [keyed.workdir.dataset.sequence(row).tolist() for row in (4, 0)]
  assert of_users == keyed.recommend(histories, top_k=4) and of_users[0] != of_users[1]
  assert keyed.history("U5") == histories[0] == keyed.history(users[0])


NO_NAMES = [
  ({"histories": [12, 57]}, "histories: number 1 is 12; expected a list of histories, each a list"),
  ({"histories": ["I1", "I2"]}, "histories: number 1 is 'I1'; expected a list of histories"),
  ({"histories": "I1"}, "histories='I1': expected a list of histories"),
  ({"histories": 7}, "histories=7: expected a list of histories"),
  ({"histories": {"I1": 1}}, "histories={'I1': 1}: expected a list"),
  ({"histories": [[3], [12.7]]}, "history 2: 12.7 is not an item; expected an id, a whole number"),
  ({"histories": [[True]]}, "history 1: True is not an item"),
  ({"histories": [np.array([1.5])]}, "history 1: .*1.5.* is not an item"),
  ({"histories": [[[1]]]}, "history 1: .1. is not an item"),
  ({"histories": [["I41"]]}, "history 1: item 'I41' is not known; expected one of 40 keys such as"),
  ({"histories": [[41]]}, "history 1: item 41 is not in the catalogue .1 to 40."),
  ({"histories": [[10**30]]}, f"history 1: item {10**30} is not in the catalogue"),
  ({"users": "U1"}, "users='U1': expected a list of user ids or keys"),
  ({"users": 1}, "users=1: expected a list of user ids or keys"),
  ({"users": ["ann"]}, "user 'ann' is not known; expected one of 60 keys such as 'U1'"),
  ({"users": [0]}, "user 0 is not known; the 60 users are such as"),
  ({"users": [1.0]}, "1.0 is not a user; expected an id"),
  ({}, "expected one of histories and users"),
  ({"histories": [[1]], "users": [1]}, "expected one of histories and users"),
  ({"histories": [[1]], "top_k": 2.5}, "top_k=2.5: expected a number from 1 to 40"),
  ({"histories": [[1]], "top_k": 2.0}, "top_k=2.0: expected a number from 1 to 40"),
  ({"histories": [[1]], "top_k": True}, "top_k=True: expected a number from 1 to 40"),
  ({"histories": [[1]], "top_k": "3"}, "top_k=3: expected a number from 1 to 40"),
]


@pytest.mark.parametrize("given, says", NO_NAMES, ids=lambda x: str(x)[:40])
def test_arguments_of_another_form_are_refused_in_one_line(keyed, given, says):
  with pytest.raises(UserError, match=says) as error:
    keyed.recommend(**given)
  assert "\n" not in str(error.value)


def test_without_keys_ids_are_asked_for(model):
  with pytest.raises(UserError, match="item 'I1' is not known; expected ids; there are no keys"):
    model.recommend([["I1"]])
  assert model.recommend([[1]], top_k=1)[0][0].key is None


def test_a_frame_has_a_row_for_every_recommended_item(keyed):
  frame = keyed.recommend_frame([["I3", 5], []], top_k=3)
  answers = keyed.recommend([[3, 5], []], top_k=3)
  assert frame.columns == ["history", "place", "item", "key", "title", "score", *keyed.sources]
  assert frame["history"].to_list() == [0, 0, 0, 1, 1, 1]
  assert frame["place"].to_list() == [1, 2, 3] * 2
  flat = [r for answer in answers for r in answer]
  assert frame["key"].to_list() == [r.key for r in flat]
  assert frame["text"].to_list() == [r.parts["text"] for r in flat]
  first = keyed.workdir.dataset.users[0]
  assert keyed.recommend_frame(users=["U1", "U9"], top_k=1)["user"].to_list() == ["U1", "U9"]
  assert keyed.recommend_frame(users=[first], top_k=1)["user"].to_list() == [first]
  assert keyed.recommend_frame(users=["U9", first], top_k=1)["user"].to_list() == ["U9", str(first)]
  assert keyed.recommend_frame([], top_k=1).is_empty()


def test_new_items_have_keys_that_are_theirs_alone(keyed):
  model = Recommender(keyed.model, keyed.workdir)
  rows = {"text": np.load(keyed.path / "synthetic" / "text.npy")[[5, 9]]}
  for given, says in (
    (["N1", "I3"], "the key 'I3' is taken"),
    (["N1", "N1"], "the key 'N1' is taken"),
    (["N1"], "1 keys of 2 new items"),
  ):
    with pytest.raises(UserError, match=says):
      model.add_items(rows, item_keys=given)
    assert model.num_items == len(model.titles) - 1 == 40
  assert model.add_items(rows, titles=["a", "b"], item_keys=["N1", None]) == range(41, 43)
  answer = model.recommend([["N1", 42]], top_k=42, repeat=True)[0]
  assert {(r.key, r.title) for r in answer if r.item > 40} == {("N1", "a"), (None, "b")}


def test_a_ranker_needs_no_data(keyed, tmp_path):
  for name in ("config.json", "recommender.safetensors"):
    shutil.copy(keyed.path / name, tmp_path)
  ranker = Ranker.load(tmp_path)
  top = ranker.top_items([[3, 5]], 4, reasons=True)
  (expected,) = keyed.recommend([[3, 5]], 4)
  assert top.item_EA[0].tolist() == [r.item for r in expected]
  assert top.part_EAO[0, 0].tolist() == list(expected[0].parts.values())
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "config.json",
    "recommender.safetensors",
  ]


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
