"""The blend of a network and evidence of random numbers, ranked again, against float64 numpy."""

import jax
import numpy as np
import pytest
from conftest import FEW_NEWEST
from flax import nnx
from scipy.special import logsumexp, ndtr

from mmesid_jax.data.batches import batch_sequences, with_histories
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models import blend
from mmesid_jax.models.blend import NETWORK_FEATURES, BlendModel, score_parts
from mmesid_jax.models.evidence import ContentSettings, CountSettings, EvidenceModel, EvidenceTables
from mmesid_jax.models.extend_catalogue import mask_as_new
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.reranker import RerankerParams
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.mesh import make_mesh
from mmesid_jax.parallel.placement import place_model

pytestmark = pytest.mark.usefixtures("few_newest")

ITEMS, FOLLOWERS, WIDTH, HIDDEN = 30, 4, 5, 3
HISTORIES = [[3], [5, 1, 5, 2], [9, 8, 7, 6, 5, 4, 3, 2, 1], [], [30, 30]]  # oldest first
LAYOUT = Layout(rows=8, row_length=16, targets=8)
COUNTS = CountSettings(recency=0.6, tail=0.25, tau=0.7, popularity=-0.3, trend=0.4, repeats=-0.8)
CONTENTS = {"text": ContentSettings(0.8, 1.5), "image": ContentSettings(0.5, 0.7)}
AMOUNTS, SHARES, WEIGHTS = np.float32([0.1, 0.6, 1.4]), np.float32([0, 0.4, 1]), (0.2, 1.3)
FEATURES = 5 + 2 * len(CONTENTS) + 5
NEWNESS = 0.6


def random_array(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network() -> RecommenderModel:
  rngs = nnx.Rngs(0)
  features = {"text": random_array(ITEMS + 1, 4, seed=0)}
  items = ItemEncoder(features, {}, {}, D=8, kind="tied", rngs=rngs)
  items.identity_ID[...] = jax.numpy.asarray(random_array(ITEMS + 1, 8, seed=1))
  counts = np.arange(ITEMS + 1)
  gates = FrequencyFusion(counts, 1, kind="sum", temperature=1.0, rngs=rngs)
  backbone = LlamaConfig(layers=1, D=8, F=12, N=2, K=2, H=4)
  return RecommenderModel(items, gates, backbone, P=2, S=0, item_dropout=0.0, rngs=rngs)


@pytest.fixture(scope="module")
def tables() -> EvidenceTables:
  rng = np.random.default_rng(2)
  follower_IK = np.stack([rng.permutation(ITEMS)[:FOLLOWERS] + 1 for _ in range(ITEMS + 1)])
  count_IK = rng.exponential(size=follower_IK.shape)
  follower_IK[[0, 4]], count_IK[[0, 4]] = 0, 0  # nothing follows item 4
  share_I = rng.uniform(0.1, 1, ITEMS + 1)
  floats = (np.float32(x) for x in (count_IK, share_I, rng.normal(size=ITEMS + 1)))
  return EvidenceTables(follower_IK.astype(np.int32), *floats)


@pytest.fixture(scope="module")
def units() -> dict[str, np.ndarray]:
  found = {m: random_array(ITEMS + 1, WIDTH, seed=n) for n, m in enumerate(CONTENTS)}
  for unit_IW in found.values():
    unit_IW /= np.linalg.norm(unit_IW, axis=1, keepdims=True)
    unit_IW[[0, 7]] = 0  # item 7 has no content
  return found


@pytest.fixture(scope="module")
def params() -> RerankerParams:
  """The features are far from deviation 1, so that a missing scale is noticed."""
  F, H = FEATURES, HIDDEN
  shapes = (F,), (F,), (), (F,), (F, H), (H,), (H,)
  found = RerankerParams(*(random_array(*shape, seed=n) for n, shape in enumerate(shapes)))
  return found._replace(scale=np.float32(0.7), output_H=3 * found.output_H)


@pytest.fixture(scope="module")
def plain(tables, units) -> BlendModel:
  """Without a reranker."""
  evidence = EvidenceModel(tables, COUNTS).with_content(units, CONTENTS).with_newness(NEWNESS)
  return BlendModel(network(), evidence, AMOUNTS, SHARES, np.float32(WEIGHTS))


@pytest.fixture(params=[10, 100])
def candidates(request, monkeypatch) -> int:
  """Candidates that there are: fewer than items, or all items."""
  monkeypatch.setattr(blend, "CANDIDATES", request.param)
  return min(request.param, ITEMS)


@pytest.fixture(scope="module")
def batch():
  sequences, lengths = [np.array([*h, 1]) for h in HISTORIES], [*map(len, HISTORIES)]
  (found,) = batch_sequences(sequences, LAYOUT, lengths)
  return with_histories(found, HISTORIES, columns=9)


def computed(model, batch, what=lambda model, *arguments: model.score_batch(*arguments)):
  """A result of model, batch and catalogue; traced again, as CANDIDATES is read then."""
  graph, state = nnx.split(model)

  @jax.jit
  def work(state, batch):
    model = nnx.merge(graph, state)
    return what(model, batch, model.catalogue())

  return jax.tree.map(np.asarray, work(state, batch))


def expected_features(history, network_I, tables, units):
  """The sums [I] and the features [I, F] of all items."""
  follower_IK, count_IK, share_I, trend_I = (np.float64(x) for x in tables)
  newest, I = history[::-1][:FEW_NEWEST], ITEMS + 1  # noqa: E741
  by_age = [COUNTS.recency**age for age in range(len(newest))]
  transitions_I, repeats_I = np.zeros(I), np.zeros(I)
  for size, item in zip(by_age, newest, strict=True):
    w = (1 - COUNTS.tail) * size / sum(by_age) + COUNTS.tail / len(newest)
    strength_K = w * np.log1p(count_IK[item] / COUNTS.tau)
    np.add.at(transitions_I, follower_IK[item].astype(int), strength_K)
  np.add.at(repeats_I, history, COUNTS.repeats)
  similar, closest = [], []
  for m, settings in sorted(CONTENTS.items()):
    unit_IW = np.float64(units[m])
    query_W = sum(
      (settings.recency**age * unit_IW[i] for age, i in enumerate(newest)), np.zeros(WIDTH)
    )
    similar.append(settings.weight * unit_IW @ query_W / max(np.linalg.norm(query_W), 1e-12))
    closest.append(np.max([unit_IW @ unit_IW[i] for i in newest], 0) if newest else -np.ones(I))
  popular_I, fresh_I = COUNTS.popularity * np.log(share_I), COUNTS.trend * trend_I
  terms = [transitions_I, popular_I, fresh_I, repeats_I, np.zeros(I), *similar]
  share = np.interp(transitions_I.sum(), AMOUNTS, SHARES)
  sum_I = sum(terms) + (WEIGHTS[0] + (WEIGHTS[1] - WEIGHTS[0]) * share) * network_I
  sum_I = sum_I if newest else network_I  # the network is asked alone
  log_probability_I = network_I - logsumexp(network_I[1:])
  last = np.log(share_I[newest[0] if newest else 0])  # that of padding where there is no item
  of_user = share, np.log1p(len(history)), last, log_probability_I[1:].max()
  ones_I = np.ones(I)
  columns = [*terms, *closest, log_probability_I, *(x * ones_I for x in of_user)]
  return sum_I, np.stack(columns, 1)


def reranked(p: RerankerParams, score_K, feature_KF):
  x_KF = (feature_KF - p.mean_F) * p.factor_F
  inner_KH = x_KF @ p.hidden_FH + p.bias_H
  return p.scale * score_K + x_KF @ p.linear_F + (inner_KH * ndtr(inner_KH)) @ p.output_H


@pytest.fixture
def expected(plain, batch, tables, units, candidates):
  """For each history: the sums, the features and the candidates."""
  network_QI = np.float64(computed(plain.network, batch))
  found = []
  for history, network_I in zip(HISTORIES, network_QI, strict=False):
    sum_I, feature_IF = expected_features(history, network_I, tables, units)
    best_K = 1 + np.argsort(-sum_I[1:])[:candidates]
    found.append((sum_I, feature_IF, best_K))
  return found


def test_candidates_are_the_best_by_the_sum_with_what_every_source_says(plain, batch, expected):
  found = computed(plain, batch, BlendModel.candidates)
  assert found.feature_QKF.shape[2] == FEATURES
  for q, (sum_I, feature_IF, best_K) in enumerate(expected):
    np.testing.assert_array_equal(found.item_QK[q], best_K)
    np.testing.assert_allclose(found.score_QK[q], sum_I[best_K], rtol=1e-4, atol=1e-4)
    for f in range(FEATURES):
      np.testing.assert_allclose(
        found.feature_QKF[q, :, f], feature_IF[best_K, f], rtol=1e-4, atol=1e-4, err_msg=f"{q} {f}"
      )


def test_candidates_say_which_items_are_new(plain, batch, candidates):
  new_I = np.arange(ITEMS + 1) % 5 == 2
  found = computed(plain.mask_as_new(new_I), batch, BlendModel.candidates)
  used = len(HISTORIES)
  expected_QK = NEWNESS * new_I[found.item_QK[:used]]
  np.testing.assert_allclose(found.feature_QKF[:used, :, 4], expected_QK, rtol=1e-6)
  network_QI = computed(mask_as_new(plain.network, jax.numpy.asarray(new_I)), batch)[:used]
  log_probability_QI = network_QI - logsumexp(network_QI[:, 1:], axis=1, keepdims=True)
  expected_QK = np.take_along_axis(log_probability_QI, found.item_QK[:used], 1)
  np.testing.assert_allclose(found.feature_QKF[:used, :, -5], expected_QK, rtol=1e-4, atol=1e-4)


def assert_scores(score_QI, expected_QI):
  """Of the items, for the histories: a mesh may add columns."""
  used = len(HISTORIES)
  np.testing.assert_allclose(
    score_QI[:used, 1 : ITEMS + 1], expected_QI[:used, 1:], rtol=1e-4, atol=1e-3
  )


def test_on_a_mesh_the_same_items_are_new(plain, batch):
  """Also where tables have rows that only the mesh needs."""
  new_I = np.arange(ITEMS + 1) % 5 == 2
  expected_QI = computed(plain.mask_as_new(new_I), batch)
  with jax.set_mesh(make_mesh(1, 4, 2)):
    copy = nnx.clone(plain)
    place_model(copy)
    copy = copy.mask_as_new(new_I)
    place_model(copy)
    assert_scores(computed(copy, batch), expected_QI)


def test_features_of_the_network_are_those_that_depend_on_it(plain, batch, expected):
  """With weight 0 and a history, else candidates depend on it, too."""
  q = np.flatnonzero([*map(bool, HISTORIES)])
  parts = plain.evidence, AMOUNTS, SHARES, np.zeros(2, np.float32)
  found = []
  for factor in (1.0, 2.0):
    other = network()
    other.items.identity_ID[...] = factor * other.items.identity_ID[...]
    found.append(computed(BlendModel(other, *parts), batch, BlendModel.candidates))
  np.testing.assert_array_equal(found[0].item_QK[q], found[1].item_QK[q])
  differ_F = np.abs(found[0].feature_QKF - found[1].feature_QKF)[q].max((0, 1)) > 1e-3
  assert sorted(np.flatnonzero(differ_F) - FEATURES) == sorted(NETWORK_FEATURES)


def test_the_order_of_candidates_is_the_rerankers_and_others_stay_below(
  plain, batch, params, expected
):
  score_QI = computed(plain.with_reranker(params), batch)
  changed = lowered = 0
  for q, (sum_I, feature_IF, best_K) in enumerate(expected):
    if not HISTORIES[q]:
      np.testing.assert_allclose(score_QI[q, 1:], sum_I[1:], rtol=1e-3, atol=1e-3)
      continue
    new_K = reranked(params, sum_I[best_K], feature_IF[best_K])
    new_K += sum_I[best_K].mean() - new_K.mean()
    excess = max(sum_I[best_K].min() - new_K.min(), 0)
    new_I = sum_I - excess
    new_I[best_K] = new_K
    lowered += excess > 0
    np.testing.assert_allclose(score_QI[q, 1:], new_I[1:], rtol=1e-3, atol=1e-3)
    others_I = np.delete(score_QI[q], [0, *best_K])
    assert (score_QI[q, best_K].min() >= others_I).all()
    changed += (np.argsort(-new_K) != np.arange(len(best_K))).sum()
  assert changed > len(expected) and lowered


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_on_a_mesh_the_scores_are_the_same(plain, batch, params, candidates, mesh):
  """Also where a device has fewer items than there are candidates."""
  model = plain.with_reranker(params)
  expected_QI = computed(model, batch)
  with jax.set_mesh(make_mesh(*mesh)):
    copy = nnx.clone(model)
    place_model(copy)
    assert_scores(computed(copy, batch), expected_QI)


def test_parts_add_up_and_what_reranking_adds_is_one_of_them(plain, batch, params, expected):
  model = plain.with_reranker(params)
  score_QI = computed(model, batch)
  item_QA = np.tile(np.arange(1, ITEMS + 1), (len(score_QI), 1))
  score_QA = np.take_along_axis(score_QI, item_QA, 1)

  def parts(model, batch, catalogue):
    return score_parts(model, model.hidden(batch), batch, item_QA, score_QA)

  part_QAO = computed(model, batch, parts)
  similar = ("similar image", "similar text")
  of_evidence = ("transitions", "popularity", "trend", "repeats", "new", *similar)
  assert model.sources == ("identity", "text", *of_evidence, "reranking")
  np.testing.assert_allclose(part_QAO.sum(2), score_QA, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(part_QAO[..., :-1], computed(plain, batch, parts), atol=1e-6)
  for q, (sum_I, _, best_K) in enumerate(expected):
    added_I = part_QAO[q, :, -1]
    np.testing.assert_allclose(added_I, score_QI[q, 1:] - sum_I[1:], atol=1e-3)
    np.testing.assert_allclose(added_I[best_K - 1].mean(), 0, atol=1e-3)
    assert (np.abs(added_I).max() > 1e-3) == bool(HISTORIES[q])


def test_a_network_that_has_diverged_shows_in_the_scores(plain, batch, params):
  model = nnx.clone(plain.with_reranker(params))
  model.network.items.identity_ID[...] = model.network.items.identity_ID[...].at[9].set(np.nan)
  score_QI = computed(model, batch)[: len(HISTORIES)]
  assert np.isnan(score_QI[:, 1:]).any(1).all()
