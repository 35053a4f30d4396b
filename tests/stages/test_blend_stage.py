"""The recommender beside evidence: its formula, the choice of weights, and what is served."""

import itertools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.evaluation.metrics import user_values
from mmesid_jax.models.blend import BlendModel
from mmesid_jax.parallel.mesh import make_mesh
from mmesid_jax.parallel.variables import Frozen
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages import blend_stage
from mmesid_jax.stages.blend_stage import BLEND, best_pair, choose_weights
from mmesid_jax.stages.evidence_stages import CONTENT
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.workdir import reopen_workdir


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
  quantiles = np.asarray(model.quantile_E[...], np.float64)
  assert len(np.unique(quantiles)) > 3
  for batch in evaluator(opened).batches():
    score_QI = np.asarray(model.score_batch(batch, model.catalogue()))
    network_QI = np.asarray(network.score_batch(batch, network.catalogue()))
    evidence_QI = np.asarray(content.score_batch(batch))
    # its transitions alone are what an item with no other term gets: sum them over all items
    _, strength_QE = content.transitions(batch.history_QX)
    for q in np.flatnonzero(batch.weight_Q > 0):
      amount = float(np.asarray(strength_QE)[q].sum())
      upper = int(np.searchsorted(quantiles, amount).clip(1, len(quantiles) - 1))
      low, high = quantiles[upper - 1], quantiles[upper]
      within = (amount - low) / (high - low) if high > low else 0
      share = (upper - 1 + within) / (len(quantiles) - 1)
      weight = 0.1 + (0.7 - 0.1) * share
      expected_I = evidence_QI[q] + weight * network_QI[q]
      np.testing.assert_allclose(score_QI[q, 1:], expected_I[1:], rtol=1e-3, atol=1e-3)


def test_half_of_the_users_have_less_evidence_than_the_middle(opened, model):
  shares = [
    np.asarray(model.share(batch.history_QX))[batch.weight_Q > 0]
    for batch in evaluator(opened).batches()
  ]
  share_U = np.concatenate(shares)
  assert share_U.min() == 0 and share_U.max() == 1
  assert np.mean(share_U < 0.5) == pytest.approx(0.5, abs=0.1)


def test_all_pairs_are_tried_as_each_alone(opened, model, monkeypatch):
  monkeypatch.setattr(blend_stage, "WEIGHTS", (0.0, 0.3, 2.0))
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


@pytest.mark.parametrize(("gain", "best"), [(0.09, 0), (0.11, 2)])
def test_a_gain_within_its_standard_error_leaves_the_network_out(gain, best):
  noise_U = np.tile([1.0, -1.0], 50)  # standard error 0.1
  value_EU = np.stack([np.zeros(100), np.full(100, -1.0), noise_U + gain])
  assert best_pair(value_EU) == best


def test_it_is_a_row_of_the_results_and_its_weights_are_in_the_artifact(opened, blended):
  models = json.loads((blended / "evaluation.json").read_text())["models"]
  assert [*models] == [
    "popularity", "counts", "counts + content", "SASRec", "MME-SID", "MME-SID + evidence",
  ]  # fmt: skip
  _, header = BLEND.read(blended)
  assert header["upstream"] == {s.name: s.fingerprint(opened) for s in (CONTENT, RECOMMENDER)}


def test_recommendations_are_its_best_items_with_the_reasons_that_add_up(opened, blended, model):
  histories = [[1, 2, 3], [], [7], [40, 5]]
  answers = Recommender.load(blended).recommend(histories, top_k=5)
  names = ("identity", "collaborative", "text", "transitions", "popularity", "repeats")
  for history, answer in zip(histories, answers, strict=True):
    assert not {r.item for r in answer} & set(history) and len(answer) == 5
    for r in answer:
      assert (*r.parts,) == (*names, "similar text")
      assert sum(r.parts.values()) == pytest.approx(r.score, abs=1e-4)
  assert any(r.parts["transitions"] for answer in answers for r in answer)
  assert all(r.parts["identity"] and r.parts["similar text"] for r in answers[0])
  # the same order as in the evaluation
  for batch in evaluator(opened, "test").batches():
    score_QI = np.array(model.score_batch(batch, model.catalogue()))
    q = int(np.flatnonzero(batch.weight_Q > 0)[0])
    history = np.asarray(batch.history_QX)[q]
    history = history[history > 0][::-1].tolist()
    score_QI[q, [0, *history]] = -np.inf
    (answer,) = Recommender.load(blended).recommend([history], top_k=3)
    assert [r.item for r in answer] == np.argsort(-score_QI[q], kind="stable")[:3].tolist()


def test_a_new_item_is_similar_to_what_its_twin_is_similar_to(opened, blended):
  served = Recommender.load(blended)
  text = opened.features(names=["text"])["text"]
  (new,) = served.add_items({"text": text[[9]]})
  (answer,) = served.recommend([[1, 2, 3]], top_k=served.num_items - 3)
  parts = {r.item: r.parts for r in answer}
  assert parts[new]["similar text"] == pytest.approx(parts[9]["similar text"], abs=1e-5)
  assert parts[new]["transitions"] == 0 and parts[new]["identity"] == 0


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 4, 2)])
def test_ranks_are_those_of_one_device(opened, model, mesh):
  def ranks(on):
    with jax.set_mesh(on):
      return evaluator(opened, "test").model_ranks(nnx.clone(model))

  found, expected = ranks(make_mesh(*mesh)), ranks(make_mesh())
  for protocol, rank_U in expected.items():
    assert np.mean(found[protocol] != rank_U) < 0.05  # the last digit of a score may differ
