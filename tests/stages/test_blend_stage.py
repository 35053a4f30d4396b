"""The blend of network and evidence: its formula, the choice of weights, and serving."""

import itertools
import json
import pathlib
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from mmesid_jax import pipeline
from mmesid_jax.config.saved import read_config
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import Evaluator, model_catalogue
from mmesid_jax.evaluation.metrics import user_values
from mmesid_jax.files.artifact import read_artifact, write_artifact
from mmesid_jax.models.blend import BlendModel
from mmesid_jax.parallel.mesh import make_mesh
from mmesid_jax.parallel.variables import Frozen
from mmesid_jax.reports.test_ranks import evaluate_models
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages import blend_stage
from mmesid_jax.stages.blend_stage import (
  BLEND,
  best_pair,
  choose_newness,
  choose_reranker,
  choose_weights,
  load_blend,
)
from mmesid_jax.stages.evidence_stages import CONTENT
from mmesid_jax.stages.recommender_stage import RECOMMENDER, load_recommender
from mmesid_jax.stages.registry import STAGES
from mmesid_jax.stages.reranker_fit import fit_reranker
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.workdir import Workdir, reopen_workdir


@pytest.fixture(scope="module")
def opened(blended):
  return reopen_workdir(blended)


@pytest.fixture(scope="module")
def model(opened) -> BlendModel:
  return BLEND.load_model(opened)


def evaluator(workdir, split="valid") -> Evaluator:
  layout = evaluation_layout(BLEND.layout(workdir.config), workdir.config.evaluation.targets)
  return Evaluator(workdir.dataset, layout, split)


def test_scores_are_evidence_and_the_weighted_network(opened, model):
  network, content = RECOMMENDER.load_model(opened), CONTENT.load_model(opened)
  amounts, shares = (np.asarray(x[...], np.float64) for x in (model.amount_E, model.share_E))
  assert len(amounts) > 3
  for batch in evaluator(opened).batches():
    score_QI = np.asarray(model.score_batch(batch, model.catalogue()))
    network_QI = np.asarray(network.score_batch(batch, network.catalogue()))
    evidence_QI = np.asarray(content.score_batch(batch))
    _, strength_QE = content.transitions(batch.history_QX)
    for q in np.flatnonzero(batch.weight_Q > 0):
      amount = float(np.asarray(strength_QE)[q].sum())
      upper = int(np.searchsorted(amounts, amount).clip(1, len(amounts) - 1))
      low, high = amounts[upper - 1], amounts[upper]
      within = np.clip((amount - low) / (high - low), 0, 1)
      share = shares[upper - 1] + within * (shares[upper] - shares[upper - 1])
      weight = 0.1 + (0.7 - 0.1) * share
      expected_I = evidence_QI[q] + weight * network_QI[q]
      np.testing.assert_allclose(score_QI[q, 1:], expected_I[1:], rtol=1e-3, atol=1e-3)


class Amounts(nnx.Module):
  """A model whose amounts of evidence are given, one for each target of a batch."""

  def __init__(self, amount_Q):
    self.amount_Q = Frozen(np.float32(amount_Q))

  def evidence(self, history_QX):
    return self.amount_Q[...]


class OneBatch:
  def batches(self):
    yield SimpleNamespace(history_QX=np.zeros((12, 1)), weight_Q=np.array([1] * 10 + [0, 0]))


@pytest.mark.parametrize(
  ("amount_Q", "less"),
  [
    ([*range(10), 99, 99], {0: 0, 4.5: 0.5, 9: 1}),
    ([0, 0, 0, 0, 0, 5, 6, 7, 8, 9, 99, 99], {0: 0, 9: 1}),  # half have nothing
    ([3] * 12, {3: 0}),
  ],
)
def test_shares_of_users_who_have_less_evidence(amount_Q, less, monkeypatch):
  monkeypatch.setattr(blend_stage, "_evidence", lambda g, s, b: nnx.merge(g, s).evidence(None))
  amount_E, share_E = blend_stage.amounts_and_shares(Amounts(amount_Q), OneBatch())
  assert (np.diff(amount_E) > 0).all() and (np.diff(share_E) > 0).all()
  for amount, share in less.items():
    assert np.interp(amount, amount_E, share_E) == pytest.approx(share, abs=0.1)


def test_all_pairs_are_tried_as_each_alone(opened, model, monkeypatch):
  monkeypatch.setattr(blend_stage, "NETWORK_WEIGHTS", (0.0, 0.3, 2.0))
  metric, cutoffs = opened.config.evaluation.select, (10,)
  value = {}
  for pair in itertools.product((0.0, 0.3, 2.0), repeat=2):
    one = nnx.clone(model)
    one.weight_2 = Frozen(np.float32(pair))
    ranks = evaluator(opened).model_ranks(one).values()
    value[pair] = np.mean([user_values(rank_U, cutoffs)[metric].mean() for rank_U in ranks])
  tried = []
  monkeypatch.setattr(blend_stage, "best_pair", lambda value_EU: tried.append(value_EU) or 5)
  choice = choose_weights(nnx.clone(model), evaluator(opened), opened.config)
  (value_EU,) = tried
  np.testing.assert_allclose(value_EU.mean(1), [*value.values()], atol=2e-3)  # ties of rounding
  np.testing.assert_array_equal(choice.weight_2, np.float32([0.3, 2.0]))
  assert choice.value == pytest.approx(value_EU[5].mean())
  assert choice.evidence_alone == pytest.approx(value_EU[0].mean())


@pytest.mark.parametrize(("gain", "best"), [(0.19, 0), (0.21, 2)])
def test_a_gain_within_two_standard_errors_leaves_the_network_out(gain, best):
  noise_U = np.tile([1.0, -1.0], 50)  # standard error 0.1
  value_EU = np.stack([np.zeros(100), np.full(100, -1.0), noise_U + gain])
  assert best_pair(value_EU) == best


def test_it_is_a_row_of_the_results_and_its_weights_are_in_the_artifact(opened, blended):
  models = json.loads((blended / "evaluation.json").read_text())["models"]
  assert [*models] == [
    "popularity", "counts", "counts + content", "SASRec", "MME-SID", "MME-SID + evidence",
  ]  # fmt: skip
  _, header = BLEND.read(blended, read_config(blended))
  assert header["upstream"] == {s.name: s.fingerprint(opened) for s in (CONTENT, RECOMMENDER)}


def check_order(served: Recommender, model: BlendModel, opened) -> None:
  """What is served has the order of the evaluation."""
  for batch in evaluator(opened, "test").batches():
    score_QI = np.array(model.score_batch(batch, model.catalogue()))
    q = int(np.flatnonzero(batch.weight_Q > 0)[0])
    history = np.asarray(batch.history_QX)[q]
    history = history[history > 0][::-1].tolist()
    score_QI[q, [0, *history]] = -np.inf
    (answer,) = served.recommend([history], top_k=3)
    assert [r.item for r in answer] == np.argsort(-score_QI[q], kind="stable")[:3].tolist()


def test_recommendations_are_its_best_items_with_the_reasons_that_add_up(opened, blended, model):
  histories = [[1, 2, 3], [], [7], [40, 5]]
  answers = Recommender.load(blended).recommend(histories, top_k=5)
  names = ("identity", "collaborative", "text", "transitions", "popularity", "trend", "repeats")
  names = (*names, "new", "similar text")
  for history, answer in zip(histories, answers, strict=True):
    assert not {r.item for r in answer} & set(history) and len(answer) == 5
    for r in answer:
      assert (*r.parts,) == names and r.parts["new"] == 0
      assert sum(r.parts.values()) == pytest.approx(r.score, abs=1e-4)
  assert any(r.parts["transitions"] for answer in answers for r in answer)
  assert all(r.parts["identity"] and r.parts["similar text"] for r in answers[0])
  check_order(Recommender.load(blended), model, opened)


def test_histories_that_are_all_empty_have_a_shape(reranked):
  served = Recommender.load(reranked[0])
  top = served.top_items([[], []], 5, shape=served.shape_for(np.array([0, 0])))
  np.testing.assert_array_equal(top.item_EA, served.top_items([[], []], 5).item_EA)


def test_a_new_item_is_similar_to_what_its_twin_is_similar_to(opened, blended):
  served = Recommender.load(blended)
  text = opened.features(names=["text"])["text"]
  (new,) = served.add_items({"text": text[[9]]})
  (answer,) = served.recommend([[1, 2, 3]], top_k=served.num_items - 3)
  parts = {r.item: r.parts for r in answer}
  assert parts[new]["similar text"] == pytest.approx(parts[9]["similar text"], abs=1e-5)
  assert parts[new]["transitions"] == 0 and parts[new]["identity"] == 0
  newness = read_artifact(blended / "blend.safetensors", "blend")[0]["newness"]
  assert parts[new]["new"] == pytest.approx(float(newness)) and newness > 0


@pytest.mark.parametrize("mesh", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (1, 4, 2)])
def test_scores_and_the_choice_are_those_of_one_device(opened, model, mesh, monkeypatch):
  monkeypatch.setattr(blend_stage, "NETWORK_WEIGHTS", (0.0, 0.3))
  columns = model.num_items + 1

  def found(on):
    with jax.set_mesh(on):
      copy = nnx.clone(model)
      choice = choose_weights(copy, evaluator(opened), opened.config)
      amounts, _ = blend_stage.amounts_and_shares(copy.evidence, evaluator(opened))
      graph, state = nnx.split(copy)
      catalogue = model_catalogue(graph, state)
      score = jax.jit(lambda state, batch: nnx.merge(graph, state).score_batch(batch, catalogue))
      scores = [
        np.asarray(score(state, batch))[:, :columns] for batch in evaluator(opened).batches()
      ]
      return np.concatenate(scores), amounts, choice

  (score_QI, amount_E, choice), (expected_QI, expected_E, expected) = map(
    found, (make_mesh(*mesh), make_mesh())
  )
  np.testing.assert_allclose(score_QI[:, 1:], expected_QI[:, 1:], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(amount_E, expected_E, rtol=1e-5)
  assert choice.value == pytest.approx(expected.value, abs=2e-3)


def test_a_blend_of_another_recommender_is_neither_served_nor_evaluated(blended, tmp_path, capsys):
  path = shutil.copytree(blended, tmp_path / "copy")
  tensors, header = read_artifact(path / "recommender.safetensors", "recommender")
  write_artifact(path / "recommender.safetensors", tensors, header | {"fingerprint": "other"})
  with pytest.raises(UserError, match="made for another recommender than the one beside it"):
    Recommender.load(path)
  models = evaluate_models(reopen_workdir(path), "test")["models"]
  assert "MME-SID" in models and "MME-SID + evidence" not in models
  assert "blend: left out" in capsys.readouterr().err


def test_a_model_whose_scores_are_no_numbers_is_not_evaluated(blended, monkeypatch):
  def broken(workdir):
    model = load_recommender(workdir.path, workdir.config)
    model.state_scale = np.nan
    return model

  monkeypatch.setattr(RECOMMENDER, "load_model", broken)
  before = (blended / "evaluation.json").read_bytes()
  with pytest.raises(
    UserError, match="recommender.safetensors: the model's scores are not numbers"
  ):
    evaluate_models(reopen_workdir(blended), "test")
  assert (blended / "evaluation.json").read_bytes() == before


def test_a_run_that_leaves_an_old_blend_names_a_command_that_works(blended, tmp_path, tiny, capsys):
  path = shutil.copytree(blended, tmp_path / "copy")
  changes = {"stages": ("recommender",), "recommender.mlp_width": 24}
  pipeline.run_pipeline(tiny(changes=changes), path, overwrite=True)
  assert capsys.readouterr().out.endswith(f"--workdir={path} --user=1,2,3 --model=network\n")
  assert Recommender.load(path, model="network").recommend([[1, 2, 3]], top_k=1)


def test_without_a_blend_the_network_is_served(blended, tmp_path):
  path = shutil.copytree(blended, tmp_path / "copy")
  (path / "blend.safetensors").unlink()
  (answer,) = Recommender.load(path).recommend([[1, 2, 3]], top_k=1)
  assert [*answer[0].parts] == ["identity", "collaborative", "text"]


def test_the_network_alone_is_served_where_it_is_asked_for(blended, trained):
  def answers(path, model):
    (answer,) = Recommender.load(path, model=model).recommend([[1, 2, 3]], top_k=5)
    return [(r.item, r.score, [*r.parts]) for r in answer]

  alone = answers(blended, "network")
  assert alone == answers(trained, "network") == answers(trained, None)
  assert alone != answers(blended, "blend") == answers(blended, None)
  with pytest.raises(UserError, match="blend.safetensors: no such file; run mmesid_jax.train"):
    Recommender.load(trained, model="blend")
  with pytest.raises(UserError, match="model='counts': expected one of network, blend"):
    Recommender.load(trained, model="counts")


def test_a_blend_of_an_earlier_version_is_refused_in_one_line(blended, tmp_path):
  path = shutil.copytree(blended, tmp_path / "copy")
  tensors, header = read_artifact(path / "blend.safetensors", "blend")
  del tensors["newness"]
  write_artifact(path / "blend.safetensors", tensors, header)
  with pytest.raises(UserError, match="blend.safetensors: of an earlier version"):
    Recommender.load(path)


def test_the_best_place_for_new_items_is_chosen_with_some_treated_as_new(
  opened, model, monkeypatch
):
  """Targets that are treated as new want the largest, targets that are known the smallest."""
  monkeypatch.setattr(blend_stage, "NEWNESS", (0.1, 50.0))
  targets = np.unique(np.concatenate([b.target_Q for b in evaluator(opened).batches()]))
  are_new = np.isin(np.arange(model.num_items + 1), targets)
  for new_I, best in ((are_new, 50.0), (~are_new, 0.1)):
    with_new = model.mask_as_new(new_I)
    monkeypatch.setattr(blend_stage, "with_some_new", lambda _, with_new=with_new: with_new)
    plain = model.replace(evidence=model.evidence.with_newness(0))
    assert choose_newness(plain, evaluator(opened), opened.config) == best


def test_counts_of_an_earlier_version_are_refused_in_one_line(opened, blended, tmp_path):
  path = shutil.copytree(blended, tmp_path / "copy")
  tensors, header = read_artifact(path / "content.safetensors", "content")
  del tensors["trend"]
  write_artifact(path / "content.safetensors", tensors, header)
  with pytest.raises(UserError, match="content.safetensors: of an earlier version"):
    CONTENT.load_model(reopen_workdir(path))


def test_long_and_repeated_histories_are_answered_as_their_newest_items(blended):
  served = Recommender.load(blended)
  long = [1 + (3 * k) % 25 for k in range(90)]
  cut = BLEND.layout(reopen_workdir(blended).config).longest_history
  (answer,) = served.recommend([long], top_k=10)
  (newest,) = served.recommend([long[-cut:]], top_k=10)
  assert [r.item for r in answer] == [r.item for r in newest]
  np.testing.assert_allclose([r.score for r in answer], [r.score for r in newest], rtol=1e-5)
  assert min(r.item for r in answer) > 25


def test_a_new_item_in_a_history_has_content_and_no_followers(opened, blended):
  served = Recommender.load(blended)
  text = opened.features(names=["text"])["text"]
  first = served.add_items({"text": text[[9, 12]]})[0]
  second = served.add_items({"text": text[[5]]})[0]
  assert (first, second) == (41, 43)
  for new, old in ((first, 9), (second, 5)):
    by_new, by_old = (
      {r.item: r.parts for r in served.recommend([[item]], top_k=30)[0]} for item in (new, old)
    )
    assert all(parts["transitions"] == 0 for parts in by_new.values())
    assert any(parts["transitions"] for parts in by_old.values())
    for item in by_new.keys() & by_old.keys():
      ours, theirs = (parts[item]["similar text"] for parts in (by_new, by_old))
      assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.fixture(scope="module")
def reranked(blended, tmp_path_factory):
  """A copy of the workdir with a blend that has a reranker, and the reranker that was fitted."""
  path = pathlib.Path(shutil.copytree(blended, tmp_path_factory.mktemp("runs") / "reranked"))
  fitted = []

  def fit_with_newness(model, *arguments):
    assert model.evidence.newness[...] == np.float32(0.07)  # the reranker knows new items by it
    return choose_reranker(model, *arguments)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(blend_stage, "FEWEST", 10)
    patch.setattr(blend_stage, "choose_newness", lambda *_: 0.07)
    patch.setattr(blend_stage, "choose_reranker", fit_with_newness)
    patch.setattr(blend_stage, "is_sure", lambda gain_U: True)
    patch.setattr(
      blend_stage, "fit_reranker", lambda *given: fitted.append(fit_reranker(*given)) or fitted[-1]
    )
    BLEND.train(reopen_workdir(path))
  assert len(fitted) == 3  # on either half, and on all
  return path, fitted[-1]


def test_the_artifact_holds_the_reranker(reranked, opened, model):
  path, params = reranked
  workdir = reopen_workdir(path)
  assert BLEND.load_model(workdir).evidence.newness[...] == np.float32(0.07)
  loaded, (tensors, header) = BLEND.load_model(workdir), BLEND.read(path, workdir.config)
  weights = tensors["weights"]
  arrays = model.amount_E[...], model.share_E[...], weights
  ours = BlendModel(model.network, model.evidence, *arrays).with_reranker(params)
  batch = next(evaluator(opened).batches())
  score_QI, expected_QI = (np.asarray(m.score_batch(batch, m.catalogue())) for m in (loaded, ours))
  np.testing.assert_array_equal(score_QI, expected_QI)
  assert model.reranker is None and np.abs(score_QI - plain_scores(loaded, batch)).max() > 0.01
  assert header["valid"] == header["reranked"] != header["summed"]
  refreshed = {"trend": tensors["trend"] + 1, "amounts": tensors["amounts"] + 1}
  served = load_blend(path, workdir.config, refreshed)
  np.testing.assert_array_equal(served.reranker.hidden_FH[...], params.hidden_FH)
  np.testing.assert_allclose(served.evidence.trend_I[...], refreshed["trend"])


def plain_scores(model, batch):
  parts = model.network, model.evidence, model.amount_E[...], model.share_E[...]
  without = BlendModel(*parts, model.weight_2[...])
  return np.asarray(without.score_batch(batch, without.catalogue()))


def test_a_refit_takes_the_reranker_to_the_last_bit(reranked, tmp_path, monkeypatch):
  path, _ = reranked
  first = reopen_workdir(path)
  made = {name: s.choice(first) for name, s in STAGES.items() if first.artifact(name).exists()}
  chosen = json.loads(json.dumps(made))
  copy = pathlib.Path(shutil.copytree(path, tmp_path / "copy"))
  before, _ = BLEND.read(copy, read_config(copy))
  (copy / "blend.safetensors").unlink()
  monkeypatch.setattr(Workdir, "is_refit", True)
  monkeypatch.setattr(Workdir, "chosen_for", lambda self, stage: chosen[stage])
  BLEND.train(reopen_workdir(copy))
  after, _ = BLEND.read(copy, read_config(copy))
  assert before.keys() == after.keys()
  for name, x in before.items():
    assert (x.dtype, x.shape) == (after[name].dtype, after[name].shape)
    np.testing.assert_array_equal(x, after[name], err_msg=name)


def test_what_is_served_was_ranked_again_also_new_items(reranked, opened):
  path, _ = reranked
  served = Recommender.load(path)
  model, histories = BLEND.load_model(reopen_workdir(path)), [[1, 2, 3], [], [40, 5]]

  def check(answers):
    for history, answer in zip(histories, answers, strict=True):
      for r in answer:
        assert [*r.parts][-1] == "reranking" and len(r.parts) == 10
        assert sum(r.parts.values()) == pytest.approx(r.score, abs=1e-3)
      assert any(abs(r.parts["reranking"]) > 1e-2 for r in answer) == bool(history)

  check(served.recommend(histories, top_k=5))
  check_order(served, model, opened)
  text = opened.features(names=["text"])["text"]
  (new,) = served.add_items({"text": text[[9]]})
  answers = served.recommend(histories, top_k=served.num_items - 3)
  check(answers)
  parts = {r.item: r.parts for r in answers[0]}
  assert abs(parts[new]["reranking"]) > 1e-3


def test_without_the_network_nothing_depends_on_it(opened, model, monkeypatch):
  """As a control: the weights are 0, and what the reranker reads of the network is not used."""
  monkeypatch.setattr(blend_stage, "FEWEST", 10)
  monkeypatch.setattr(blend_stage, "is_sure", lambda gain_U: True)
  monkeypatch.setattr(blend_stage, "NETWORK_WEIGHTS", (0.0, 0.3))
  other = nnx.clone(model.network)
  other.items.identity_ID[...] = 3 - other.items.identity_ID[...]
  batch = next(evaluator(opened).batches())
  differ = {}
  for network in (True, False):
    config = opened.config.copy_and_resolve_references()
    config.blend.network = network
    arrays = model.amount_E[...], model.share_E[...]
    ours = BlendModel(model.network, model.evidence, *arrays, np.zeros(2))
    choice = choose_weights(ours, evaluator(opened), config)
    assert choice.weight_2.any() == network and choice.tried == (4 if network else 1)
    ours = BlendModel(model.network, model.evidence, *arrays, choice.weight_2)
    params, _ = choose_reranker(ours, choice.value_U, evaluator(opened), config)
    scores = []
    for part in (model.network, other):
      one = BlendModel(part, model.evidence, *arrays, choice.weight_2).with_reranker(params)
      scores.append(np.asarray(one.score_batch(batch, one.catalogue())))
    used_Q = np.asarray(batch.weight_Q) > 0  # other rows have no history
    differ[network] = np.abs(scores[0] - scores[1])[used_Q, 1:].max()
  assert differ[True] > 0.1 and differ[False] == 0
