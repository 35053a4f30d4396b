"""Ranking, generating, or both: what is trained is evaluated, served, and nothing else is."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax import pipeline
from mmesid_jax.config.checks import check_values
from mmesid_jax.config.saved import read_config
from mmesid_jax.config.schema import TRAINED
from mmesid_jax.data.batches import batch_sequences, with_histories
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.errors import Interrupted, UserError
from mmesid_jax.experiments import ablations
from mmesid_jax.experiments.cold_start_run import run_cold_start
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.models.generate.decoder import score_all_items
from mmesid_jax.models.generate.generated_ranking import GeneratedRanking
from mmesid_jax.models.generate.head import GenerativeHead
from mmesid_jax.quantize.id_trie import build_trie
from mmesid_jax.quantize.item_ids import number_shared_codes
from mmesid_jax.reports.test_ranks import evaluate_models
from mmesid_jax.serving import all_users
from mmesid_jax.serving.jax_export import write_exported
from mmesid_jax.serving.options import Options
from mmesid_jax.serving.ranker import Ranker
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages.recommender_stage import RECOMMENDER, describe_ids
from mmesid_jax.stages.workdir import reopen_workdir

RANKED, GENERATED, SUMMED = "MME-SID", "MME-SID, generated", "MME-SID, summed"


@pytest.fixture(scope="module")
def run(tiny, trained, tmp_path_factory):
  """run(head): a workdir that is trained with the head, beside earlier stages that all share."""
  made = {}

  def train(head: str) -> pathlib.Path:
    if head not in made:
      path = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / head)
      (path / "recommender.safetensors").unlink()
      keys = {"stages": TRAINED, "recommender.head": head, "recommender.epochs": 6}
      if head == "generate":
        keys["recommender.generate.modality"] = "all"
      pipeline.run_pipeline(tiny(changes=keys), path, overwrite=True)
      made[head] = path
    return made[head]

  return train


def ndcg(path: pathlib.Path, part: str) -> dict[str, float]:
  models = json.loads((path / "evaluation.json").read_text())["models"]
  return {name: found[part]["nDCG@10"]["mean"] for name, found in models.items()}


@pytest.mark.parametrize(
  "head, rows", [("generate", [RANKED]), ("both", [RANKED, GENERATED, SUMMED])]
)
def test_a_head_learns_and_has_its_row(run, head, rows):
  """Six epochs on 60 users are enough to know more than what is bought most."""
  found = ndcg(run(head), "unmasked")
  assert [name for name in found if name.startswith("MME-SID")] == rows
  assert all(found[row] > 1.2 * found["popularity"] for row in rows), found


@pytest.mark.parametrize("head", ["generate", "both"])
def test_what_is_generated_is_what_was_evaluated(run, head):
  """From outside: the histories before the test items, and the places of these in the lists."""
  path = run(head)
  workdir = reopen_workdir(path)
  dataset, targets = workdir.dataset, workdir.dataset.split.targets["test"]
  users = [user for user, target in enumerate(targets) if target >= 0]
  sequences = [dataset.sequence(user) for user in users]
  histories = [s[: targets[user]] for user, s in zip(users, sequences, strict=True)]
  served = Recommender.load(path, model="generated")
  places = []
  for answer, user, sequence in zip(
    served.recommend(histories, top_k=10), users, sequences, strict=True
  ):
    items = [r.item for r in answer]
    assert all([*r.parts] == ["generated"] and r.parts["generated"] == r.score for r in answer)
    assert [r.score for r in answer] == sorted((r.score for r in answer), reverse=True)
    target = sequence[targets[user]]
    places.append(1 / np.log2(2 + items.index(target)) if target in items else 0)
  row = RANKED if head == "generate" else GENERATED
  assert np.mean(places) == pytest.approx(ndcg(path, "masked")[row], abs=1e-6)


def test_only_what_was_trained_is_served(run, trained):
  assert Recommender.load(run("generate")).recommend([[1, 2]], top_k=2)[0]
  for head, model in (("generate", "network"), ("generate", "blend")):
    with pytest.raises(UserError, match="head=generate, without .*; expected generated"):
      Recommender.load(run(head), model=model)
  with pytest.raises(UserError, match="recommender.head=rank, without 'generated'.*head=both"):
    Recommender.load(trained, model="generated")
  parts = [Recommender.load(run("both"), model=model) for model in ("network", "generated")]
  first, second = (part.recommend([[1, 2]], top_k=1)[0][0] for part in parts)
  assert len(first.parts) > 1 and [*second.parts] == ["generated"]


@pytest.mark.parametrize("head, model", [("generate", "generated"), ("both", "summed")])
def test_a_search_is_exported_too_and_has_no_vectors(run, head, model, tmp_path):
  served = Ranker.load(run(head), model=model)
  histories = [[1, 2, 3], [], [7, 8, 9, 10]]
  write_exported(served, tmp_path / "jax", batch=3, history=9, top_k=5)
  exported = jax.export.deserialize((tmp_path / "jax" / "model.jax_export").read_bytes())
  asked = np.array([[1, 2, 3] + 6 * [0], 9 * [0], [7, 8, 9, 10] + 5 * [0]], np.int32)
  weights = {file.stem: np.load(file) for file in (tmp_path / "jax" / "weights").glob("*.npy")}
  found, expected = exported.call(weights, asked, np.array(False)), served.top_items(histories, 5)
  np.testing.assert_array_equal(found[0], expected.item_EA)
  np.testing.assert_allclose(found[1], expected.score_EA, rtol=1e-5, atol=1e-5)
  for use in (served.static_table, lambda: served.static_queries(histories)):
    with pytest.raises(UserError, match=f"the model '{model}' has no vectors"):
      use()


def with_beams(path: pathlib.Path, beams: int, copy: pathlib.Path) -> pathlib.Path:
  shutil.copytree(path, copy)
  config = read_config(copy)
  config.evaluation.beams = beams
  (copy / "config.json").write_text(config.to_json_best_effort())
  return copy


def test_the_sum_is_that_of_both_heads(run, tmp_path):
  """Items that are not among the beams get the lowest score that was generated."""
  path, histories = with_beams(run("both"), 20, tmp_path / "run"), [[1, 2], [7], [], [9, 4, 9, 30]]
  ranked, generated, summed = (
    [
      {r.item: r for r in answer}
      for answer in Recommender.load(path, model=model).recommend(histories, top_k, repeat=True)
    ]
    for model, top_k in (("network", 40), ("generated", 20), ("summed", 40))
  )
  for of_rank, of_ids, of_sum in zip(ranked, generated, summed, strict=True):
    assert len(of_ids) == 20 and len(of_rank) == len(of_sum) == 40
    added = {item: r.parts["generated"] for item, r in of_sum.items()}
    for item, r in of_sum.items():
      assert r.score == pytest.approx(of_rank[item].score + added[item], abs=1e-5)
      assert sum(r.parts.values()) == pytest.approx(r.score, abs=1e-5) and len(r.parts) > 2
    found = {item: r.score for item, r in of_ids.items()}
    assert {item: added[item] for item in found} == pytest.approx(found, abs=1e-5)
    lowest = min(added.values())
    assert lowest <= min(found.values())
    assert (
      sum(x == lowest for x in added.values()) >= 40 - 20 - 4
    )  # the history's may be found, too


@pytest.mark.parametrize("head, model", [("both", "generated"), ("both", "summed")])
def test_a_new_item_scores_as_the_last_known_one_of_its_codes(run, head, model):
  """Here with the text of a known item; every item is searched for alone, so no beam is in between.
  A known item's score does not change."""
  text = np.load(run(head) / "synthetic" / "text.npy")[[4, 9]]
  served = Recommender.load(run(head), model=model)

  def generated(item: int) -> float:
    served.restrict_to(range(item, item + 1))
    (answer,) = served.recommend([[1, 2]], top_k=1, repeat=True)
    return answer[0].parts["generated"]

  before = [generated(item) for item in served.offered]
  added = served.add_items({"text": text})
  code_IL = np.asarray(served.model.model.items.code_IL["text"][...])
  for new in added:
    same = [i for i in range(1, added.start) if (code_IL[i] == code_IL[new]).all()]
    assert same and generated(new) == pytest.approx(before[same[-1] - 1], abs=1e-5)
  assert generated(1) == pytest.approx(before[0], abs=1e-5)
  served.restrict_to(range(1, added.stop))
  top = served.recommend([[1, 2]], top_k=10)[0]
  assert len({r.item for r in top}) == 10


def test_new_items_without_the_modality_of_the_ids_are_refused(run):
  """The collaborative one is known of no new item; here it is the only one that is given."""
  served = Recommender.load(run("both"), model="generated")
  width = served.model.model.items.feature_IV["collaborative"][...].shape[1]
  rows = {"collaborative": np.ones((1, width), np.float32)}
  with pytest.raises(UserError, match="new items without text have no codes of it"):
    served.add_items(rows)
  assert Recommender.load(run("both"), model="network").add_items(rows)


def test_a_narrow_beam_finds_what_loops_find(run):
  """Three beams for 40 items: levels lose some. A prefix is as likely as its items together; a
  search ends with the three best items, and the three best that the history lacks."""
  workdir, history = reopen_workdir(run("both")), list(range(1, 31, 2))
  model = GeneratedRanking(RECOMMENDER.load_model(workdir), 3)
  (batch,) = batch_sequences([np.array([*history, 0])], Layout(1, 16, 1), [len(history)])
  batch = with_histories(batch, [np.array(history)], len(history))
  exact_I = np.asarray(nnx.jit(score_all_items)(model.model, batch))[0]
  ids = np.asarray(model.model.generate.id_IL[...]).tolist()
  leaves = range(1, 41)
  for level in range(1, len(ids[0])):
    p = {}
    for item in leaves:
      prefix = tuple(ids[item][:level])
      p[prefix] = p.get(prefix, 0) + np.exp(exact_I[item])
    best = sorted(p, key=lambda prefix: -p[prefix])[:3]
    leaves = [item for item in leaves if tuple(ids[item][:level]) in best]
  assert len(leaves) < 40
  ranked = sorted(leaves, key=lambda item: -exact_I[item])
  expected = {*ranked[:3], *[item for item in ranked if item not in history][:3]}
  assert len(expected) > 3
  score_I = np.asarray(nnx.jit(lambda m, b: m.score_batch(b, ()))(model, batch))[0]
  assert {*np.flatnonzero(np.isfinite(score_I)).tolist()} == expected
  np.testing.assert_allclose(score_I[[*expected]], exact_I[[*expected]], atol=1e-4)


def test_what_selects_the_epoch_of_a_generating_model_is_its_own_ranking(run):
  """Validation trains with the search, and evaluation gives the same figure."""
  path = run("generate")
  _, header = read_artifact(path / "recommender.safetensors", "recommender")
  found = evaluate_models(reopen_workdir(path), "valid")["models"][RANKED]["masked"]
  assert header["valid"]["nDCG@10"] == pytest.approx(found["nDCG@10"]["mean"], abs=1e-6)


def test_lists_are_as_long_as_the_search_is_wide(run, tmp_path):
  served = Recommender.load(with_beams(run("generate"), 20, tmp_path / "run"))
  with pytest.raises(UserError, match="top_k=21: the search keeps 20 IDs; .* evaluation.beams"):
    served.recommend([[1]], top_k=21)
  assert len(served.recommend([[1]], top_k=20)[0]) == 20
  assert "all items that the search found" in served.why_nothing()
  assert len(Recommender.load(run("both"), model="summed").recommend([[1]], top_k=39)[0]) == 39


def test_a_file_of_one_model_is_not_continued_by_the_other(run, tmp_path, monkeypatch):
  """Both are read from the same artifact."""
  monkeypatch.setattr(all_users, "USERS_PER_PART", 25)
  asks = iter([None, "SIGTERM"])
  monkeypatch.setattr(all_users.StopRequest, "signal_name", lambda self: next(asks))
  output = tmp_path / "recs.jsonl"
  with pytest.raises(Interrupted):
    all_users.write_all_users(run("both"), output, Options(top_k=5, model="generated"))
  with pytest.raises(UserError, match="served was "):
    all_users.write_all_users(run("both"), output, Options(top_k=5, model="network"))


def test_an_older_blend_does_not_stand_in_the_way(run, blended, tiny, tmp_path, capsys):
  path = pathlib.Path(shutil.copytree(blended, tmp_path / "run"))
  (path / "recommender.safetensors").unlink()
  keys = {"stages": TRAINED, "recommender.head": "generate", "recommender.epochs": 1}
  pipeline.run_pipeline(tiny(changes=keys), path, overwrite=True)
  assert f"Next: python -m mmesid_jax.recommend --workdir={path} --user=1,2,3\n" in (
    capsys.readouterr().out
  )
  assert Recommender.load(path).kind == "generated"


@pytest.mark.slow  # new items are generated in another test, and cold_start has its own
def test_held_out_items_are_generated(tiny, tmp_path):
  keys = {"recommender.head": "generate", "recommender.epochs": 2}
  run_cold_start(tiny(changes=keys), tmp_path / "run", fraction=0.1, split_seed=3, overwrite=False)
  result = json.loads((tmp_path / "run" / "cold_start.json").read_text())
  found = result["anywhere in a user's sequence"]["models"][RANKED]
  assert 0 < found["all items"]["HR@20"]["mean"] <= found["cold only"]["HR@20"]["mean"]


def test_scores_that_are_not_given_are_not_summed(tiny, tmp_path):
  config = ConfigDict({
    "base": tiny(changes={"recommender.head": "generate"}),
    "model": RANKED,
    "seeds": (0,),
    "variants": {"base": {}},
    "sums": {"two": ("collaborative", "recommender")},
  })  # fmt: skip
  with pytest.raises(UserError, match="sums.two: with recommender.head=generate, 'recommender' g"):
    ablations.run_ablations(
      config, tmp_path / "runs", tmp_path / "results", variants=None, seeds=None
    )


@pytest.mark.parametrize(
  "codes, line",
  [
    (
      [[0, 0], [0, 1], [1, 0]],
      "semantic IDs of text, 2 codes each; no two items share all",
    ),
    (
      [[0, 0], [0, 1], [0, 0], [1, 1], [0, 0]],
      "semantic IDs of text, 2 codes each; 3 of 5 items (60.0%) share theirs with others and get a "
      "number in addition (at most 3 items share one ID)",
    ),
  ],
)
def test_the_share_of_items_that_need_a_number_is_told(codes, line):
  ids = number_shared_codes(np.array([[0, 0], *codes]), 2)
  head = GenerativeHead(ids, build_trie(ids.id_IL), ["text"], 2, 4, rngs=nnx.Rngs(0))
  assert describe_ids(head) == line


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"codes": "none"}, "head=both: generates codes, but recommender.codes=none"),
    (
      {"generate.modality": "visual"},
      "modality=visual: expected one of coll.*, text, .* or all",
    ),
    ({"row_length": 2}, "must be above prompt.response=0 and the 2 codes of an ID"),
    ({"evaluation.beams": 19}, "beams=19: too few items for metrics at 20 .*; take 20 or more"),
    ({"head": "generate"}, "head=generate: gives no scores of all items, which the stage blend"),
  ],
)
def test_what_cannot_be_generated_is_refused(tiny, changes, message):
  keys = {
    key if key.startswith("evaluation.") else f"recommender.{key}": value
    for key, value in {"head": "both", **changes}.items()
  }
  with pytest.raises(UserError, match=message):
    check_values(tiny(changes={**keys, "stages": (*TRAINED, "blend")}))
