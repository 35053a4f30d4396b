"""The reranker's examples by brute force, what a fit learns, and when it is kept."""

import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import softmax

from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.models import blend
from mmesid_jax.models.layers.reranker import rerank
from mmesid_jax.stages import blend_stage, reranker_fit
from mmesid_jax.stages.blend_stage import BLEND, choose_reranker
from mmesid_jax.stages.reranker_fit import (
  BATCH,
  Examples,
  collect_examples,
  fit_reranker,
  with_some_new,
)
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.workdir import reopen_workdir

K, F = 10, 5


def examples(N: int, seed: int, score_of=lambda score_NK, feature_NKF: score_NK) -> Examples:
  """Random candidates; the target is drawn by softmax of `score_of` them."""
  rng = np.random.default_rng(seed)
  score_NK = -np.sort(-rng.normal(size=(N, K)), 1).astype(np.float32)
  feature_NKF = rng.normal([0, 3, 100, 0, 0], [1, 1, 20, 1e-3, 1], (N, K, F)).astype(np.float32)
  share_NK = softmax(score_of(score_NK, feature_NKF), 1)
  place_N = (share_NK.cumsum(1) > rng.uniform(size=(N, 1))).argmax(1).astype(np.int32)
  return Examples(np.arange(N, dtype=np.int32), place_N, score_NK, feature_NKF)


def product(score_NK, feature_NKF):
  """Neither factor alone says anything, and the scores say nothing."""
  x, y = feature_NKF[..., 1] - 3, (feature_NKF[..., 2] - 100) / 20
  return 3 * x * y


def found_first(params, found: Examples) -> float:
  """The share of targets that come first."""
  score_NK = rerank(params, found.score_NK, found.feature_NKF)
  return float((np.asarray(score_NK).argmax(1) == found.place_N).mean())


def test_it_learns_what_no_sum_can_say():
  fitted = fit_reranker(examples(4000, 0, product))
  fresh = examples(1000, 1, product)
  best = (product(*fresh[2:]).argmax(1) == fresh.place_N).mean()
  assert best > 0.65
  assert found_first(fitted, fresh) > best - 0.1
  one_less = fit_reranker(examples(4000, 0, product), unused=(1,))
  assert found_first(one_less, fresh) < 0.25


def test_it_scales_features_by_those_of_all_candidates():
  found = examples(300, 0)
  fitted = fit_reranker(found)
  x = found.feature_NKF.reshape(-1, F).astype(np.float64)
  np.testing.assert_allclose(fitted.mean_F, x.mean(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(fitted.factor_F, 1 / x.std(0), rtol=1e-5)


@pytest.mark.parametrize("unused", [(0,), (-1, -4)])
def test_unused_features_have_no_influence(unused):
  def given_away(score_NK, feature_NKF):
    return 9 * feature_NKF[..., unused[0]]

  found = examples(2000, 0, given_away)
  assert found_first(fit_reranker(found), found) > 0.7
  fitted = fit_reranker(found, unused)
  assert found_first(fitted, found) < 0.2
  other = found.feature_NKF.copy()
  other[..., list(unused)] *= -1e3
  expected = rerank(fitted, found.score_NK, found.feature_NKF)
  np.testing.assert_array_equal(rerank(fitted, found.score_NK, other), expected)


@pytest.mark.parametrize("value", [0.0, -100.0, 1e6, 0.1])
def test_a_feature_that_never_varies_does_no_harm(value):
  found = examples(500, 0)
  found.feature_NKF[..., 3] = value
  fitted = fit_reranker(found)
  assert fitted.factor_F[3] == 0 and all(np.isfinite(x).all() for x in fitted)
  expected = rerank(fitted, found.score_NK, found.feature_NKF)
  found.feature_NKF[..., 3] += 50
  np.testing.assert_array_equal(rerank(fitted, found.score_NK, found.feature_NKF), expected)


@pytest.mark.parametrize("N", [30, BATCH, BATCH + 1])
def test_the_same_examples_give_the_same_reranker_however_few(N):
  first, again = fit_reranker(examples(N, 0)), fit_reranker(examples(N, 0))
  for x, y in zip(first, again, strict=True):
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x, y)
  assert first.scale != 1 and first.linear_F.any() and first.output_H.any()


class Ranked:
  """Stands for a model, and for an evaluator that ranks the targets among the candidates."""

  def __init__(self, found: Examples, content=()):
    self.found = found
    self.evidence = types.SimpleNamespace(unit_IW=content)

  def __len__(self) -> int:
    return len(self.found.user_N)

  def with_reranker(self, params):
    return params

  def model_ranks(self, params):
    score_NK = self.found.score_NK
    if params is not self:
      score_NK = np.asarray(rerank(params, score_NK, self.found.feature_NKF))
    target_N1 = np.take_along_axis(score_NK, self.found.place_N[:, None], 1)
    return {"masked": (score_NK >= target_N1).sum(1)}


EVALUATION = {"cutoffs": (10,), "select": "nDCG@10"}
CONFIG = ConfigDict({"blend": {"network": True}, "evaluation": EVALUATION})


@pytest.mark.parametrize("score_of", [lambda score_NK, _: score_NK, product])
def test_it_is_kept_where_users_gain_that_it_was_not_fitted_on(score_of, monkeypatch):
  found = examples(2000, 2, score_of)
  monkeypatch.setattr(blend_stage, "collect_examples", lambda *_: found)
  ranked = Ranked(found)
  plain_U = blend_stage.selected_values(CONFIG, ranked.model_ranks(ranked))
  params, value = choose_reranker(ranked, plain_U, ranked, CONFIG)
  before = plain_U.mean()
  if score_of is product:
    assert value > before + 0.1
    for x, y in zip(params, fit_reranker(found), strict=True):
      np.testing.assert_array_equal(x, y)
  else:
    assert params is None and value == pytest.approx(before, abs=0.03)


@pytest.mark.parametrize(("others", "kept"), [(2, True), (3, False)])
def test_each_half_is_ranked_by_what_was_fitted_on_the_other(others, kept, monkeypatch):
  """The sum finds every target third; a reranker finds those first that it was fitted on."""
  users = np.flatnonzero(np.random.default_rng(0).uniform(size=600) < 0.6).astype(np.int32)
  found = examples(len(users), 0)._replace(user_N=users)
  fits = []

  class Cheat(Ranked):
    def __len__(self):
      return 600

    def model_ranks(self, fitted):
      rank_U = np.full(600, 3)
      if fitted is not self:
        rank_U[users] = others
        rank_U[fitted] = 1
      return {"masked": rank_U}

  def fit(chosen: Examples, unused):
    at = np.searchsorted(users, chosen.user_N)
    np.testing.assert_array_equal(chosen.place_N, found.place_N[at])
    np.testing.assert_array_equal(chosen.feature_NKF, found.feature_NKF[at])
    fits.append([*chosen.user_N])
    return chosen.user_N

  monkeypatch.setattr(blend_stage, "fit_reranker", fit)
  monkeypatch.setattr(blend_stage, "collect_examples", lambda *_: found)
  model = Cheat(found)
  plain_U = blend_stage.selected_values(CONFIG, model.model_ranks(model))
  params, value = choose_reranker(model, plain_U, model, CONFIG)
  assert sorted(fits[0] + fits[1]) == [*users] and min(map(len, fits)) > 0.4 * len(users)
  gain = {1: 1, 2: 1 / np.log2(3), 3: 0.5}
  assert value == pytest.approx((len(users) * gain[others] + (600 - len(users)) * 0.5) / 600)
  assert (params is not None) == kept
  if kept:
    np.testing.assert_array_equal(params, users)


@pytest.mark.parametrize("user_N", [range(199), range(0, 2000, 2)])  # none in the second half
def test_too_few_users_to_fit_on_leave_it_out(user_N, monkeypatch):
  found = examples(len(user_N), 0)._replace(user_N=np.int32(user_N))
  monkeypatch.setattr(blend_stage, "collect_examples", lambda *_: found)
  plain_U = np.zeros(len(user_N))
  assert choose_reranker(Ranked(found), plain_U, Ranked(found), CONFIG) == (None, None)


@pytest.fixture
def few_candidates(monkeypatch):
  monkeypatch.setattr(blend, "CANDIDATES", K)
  jax.clear_caches()  # CANDIDATES is read when a program is traced
  yield
  jax.clear_caches()


@pytest.mark.parametrize("narrow", [False, True])
def test_examples_are_the_users_whose_target_is_a_candidate(blended, few_candidates, narrow):
  workdir = reopen_workdir(blended)
  model, c = BLEND.load_model(workdir), workdir.config
  layout = evaluation_layout(BLEND.layout(c), c.evaluation.targets)
  evaluator = Evaluator(workdir.dataset, layout, "valid", narrow=narrow)
  found = collect_examples(model, evaluator)
  rank_U = evaluator.model_ranks(model)["unmasked"]
  assert 10 < len(found.user_N) < len(rank_U)
  assert sorted(found.user_N) == [*np.flatnonzero(rank_U <= K)]
  np.testing.assert_array_equal(found.place_N, rank_U[found.user_N] - 1)
  of_user = {user: n for n, user in enumerate(found.user_N)}
  for batch in evaluator.batches():
    score_QI = np.asarray(model.score_batch(batch, model.catalogue()))
    for q in np.flatnonzero(batch.weight_Q > 0):
      if (n := of_user.pop(int(batch.piece_Q[q]), None)) is not None:
        best_K = np.sort(score_QI[q, 1:])[::-1][:K]
        np.testing.assert_allclose(found.score_NK[n], best_K, rtol=1e-4, atol=1e-4)
        past = np.asarray(batch.history_QX[q])
        expected = np.log1p(np.count_nonzero(past))
        np.testing.assert_allclose(found.feature_NKF[n, :, -3], expected, rtol=1e-5)
  assert not of_user


def test_with_content_it_is_fitted_on_items_treated_as_new_too(monkeypatch):
  known, new = examples(600, 0), examples(300, 1)
  new = new._replace(user_N=2 * new.user_N)  # users of the first half
  monkeypatch.setattr(blend_stage, "collect_examples", lambda model, _: model.found)
  monkeypatch.setattr(blend_stage, "with_some_new", lambda _: Ranked(new))
  fits = []

  def fit(chosen: Examples, unused):
    fits.append(chosen)
    return fit_reranker(chosen, unused)

  monkeypatch.setattr(blend_stage, "fit_reranker", fit)
  model = Ranked(known, content=("text",))
  choose_reranker(model, np.zeros(600), model, CONFIG)
  assert [len(chosen.user_N) for chosen in fits[:2]] == [300, 600]
  np.testing.assert_array_equal(fits[1].feature_NKF[300:], new.feature_NKF)


def test_a_share_of_the_items_is_treated_as_new(blended, few_candidates, monkeypatch):
  monkeypatch.setattr(reranker_fit, "NEW_SHARE", 0.4)
  workdir = reopen_workdir(blended)
  model, c = BLEND.load_model(workdir), workdir.config
  layout = evaluation_layout(BLEND.layout(c), c.evaluation.targets)
  evaluator = Evaluator(workdir.dataset, layout, "valid")
  newness = float(model.evidence.newness[...])
  assert np.isclose(newness, blend_stage.NEWNESS).any()
  place = model.evidence.sources.index("new")
  new_NK = collect_examples(with_some_new(model), evaluator).feature_NKF[..., place]
  np.testing.assert_allclose(np.unique(new_NK), [0, newness], rtol=1e-6)
  assert 0.02 < (new_NK > 0).mean() < 0.7
  assert not collect_examples(model, evaluator).feature_NKF[..., place].any()
  first_I, second_I = (with_some_new(model).evidence.is_new_I[...] for _ in range(2))
  np.testing.assert_array_equal(first_I, second_I)  # the artifact is the same every time
  assert first_I[0] == 0
