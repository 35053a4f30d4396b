"""Scores by counts and content, against the formula in float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FEW_NEWEST
from flax import nnx

from mmesid_jax.data.batches import with_histories
from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.evidence import (
  ContentSettings,
  CountSettings,
  EvidenceModel,
  EvidenceTables,
)

pytestmark = pytest.mark.usefixtures("few_newest")

ITEMS, FOLLOWERS, WIDTH = 9, 3, 4
HISTORIES = [[3], [5, 1, 5, 2], [9, 8, 7, 6, 5, 4, 3, 2, 1], []]  # oldest first
COUNTS = CountSettings(recency=0.6, tail=0.25, tau=0.7, popularity=-0.3, trend=0.4, repeats=-0.8)
CONTENT = ContentSettings(recency=0.8, weight=1.5)


@pytest.fixture
def tables():
  rng = np.random.default_rng(3)
  follower_IK = np.stack([rng.permutation(ITEMS)[:FOLLOWERS] + 1 for _ in range(ITEMS + 1)])
  count_IK = rng.exponential(size=follower_IK.shape).astype(np.float32)
  follower_IK[[0, 4]], count_IK[[0, 4]] = 0, 0  # nothing follows item 4
  share_I = rng.uniform(0.1, 1, ITEMS + 1).astype(np.float32)
  unit_IW = rng.normal(size=(ITEMS + 1, WIDTH)).astype(np.float32)
  unit_IW /= np.linalg.norm(unit_IW, axis=1, keepdims=True)
  unit_IW[0] = 0
  trend_I = rng.normal(size=ITEMS + 1).astype(np.float32)
  return EvidenceTables(follower_IK.astype(np.int32), count_IK, share_I, trend_I), unit_IW


def model_of(tables, content: bool = True) -> EvidenceModel:
  counted, unit_IW = tables
  model = EvidenceModel(counted, COUNTS)
  return model.with_content({"text": unit_IW}, {"text": CONTENT}) if content else model


def terms(history, tables) -> dict[str, np.ndarray]:
  """The terms of the formula, each float64 [ITEMS + 1], in loops."""
  (follower_IK, count_IK, share_I, trend_I), unit_IW = tables
  newest = history[::-1][:FEW_NEWEST]
  names = ("transitions", "repeats", "new", "similar text")
  found = {name: np.zeros(ITEMS + 1) for name in names}
  log_share_I = np.log(share_I.astype(np.float64))
  found["popularity"] = COUNTS.popularity * log_share_I
  found["trend"] = COUNTS.trend * trend_I.astype(np.float64)
  sizes = [COUNTS.recency**age for age in range(len(newest))]
  for size, item in zip(sizes, newest, strict=True):
    w = (1 - COUNTS.tail) * size / sum(sizes) + COUNTS.tail / len(newest)
    for follower, count in zip(follower_IK[item], count_IK[item], strict=True):
      found["transitions"][follower] += w * np.log1p(count / COUNTS.tau)
  for item in history:  # the whole of it
    found["repeats"][item] += COUNTS.repeats
  query = sum(
    (CONTENT.recency**age * unit_IW[item].astype(np.float64) for age, item in enumerate(newest)),
    np.zeros(WIDTH),
  )
  if newest:
    found["similar text"] = CONTENT.weight * (unit_IW @ query) / np.linalg.norm(query)
  return found


def batch_of(histories):
  packer = Packer(Layout(rows=4, row_length=16, targets=8))
  for place, history in enumerate(histories):
    assert packer.add(place, np.array([*history, 7]), len(history))
  return with_histories(packer.batch(), histories, columns=10)


@pytest.mark.parametrize("content", [False, True])
def test_scores_equal_the_formula(tables, content):
  model = model_of(tables, content)
  score_QI = np.asarray(model.score_batch(batch_of(HISTORIES)))
  for place, history in enumerate(HISTORIES):
    expected = terms(history, tables)
    if not content:
      del expected["similar text"]
    expected_I = sum(expected.values())
    np.testing.assert_allclose(score_QI[place, 1:], expected_I[1:], rtol=1e-5, atol=1e-5)


def test_contributions_are_the_terms_of_the_formula(tables):
  model, batch = model_of(tables), batch_of(HISTORIES)
  item_QA = np.tile([1, 5, 5, 9], (len(batch.target_Q), 1))
  part_QAO = np.asarray(model.contributions(batch.history_QX, item_QA))
  for place, history in enumerate(HISTORIES):
    expected = terms(history, tables)
    for o, name in enumerate(model.sources):
      found_A, expected_A = part_QAO[place, :, o], expected[name][item_QA[place]]
      np.testing.assert_allclose(found_A, expected_A, rtol=1e-5, atol=1e-5, err_msg=name)


def test_modalities_have_one_order_before_and_after_a_model_is_taken_apart(tables):
  counted, unit_IW = tables
  units = {"text": unit_IW, "image": 2 * unit_IW}
  model = EvidenceModel(counted, COUNTS).with_content(units, dict.fromkeys(units, CONTENT))
  again = nnx.merge(*nnx.split(model))
  assert model.sources == again.sources
  history_QX, item_Q1 = batch_of(HISTORIES).history_QX, np.full((8, 1), 5)
  both = [np.asarray(x.contributions(history_QX, item_Q1))[0, 0] for x in (model, again)]
  named = dict(zip(model.sources, np.stack(both, 1), strict=True))
  np.testing.assert_allclose(*named["similar text"])
  np.testing.assert_allclose(named["similar image"], 2 * named["similar text"][0], rtol=1e-6)


def test_contributions_add_up_to_the_scores(tables):
  """Also where the first term is given, and an item is asked for twice."""
  model, history_QX = model_of(tables), batch_of(HISTORIES).history_QX
  item_QA = np.random.default_rng(0).integers(1, ITEMS + 1, (len(history_QX), 2 * ITEMS))
  transition_QI = model.transition_scores(history_QX)
  part_QAO = np.asarray(model.contributions(history_QX, item_QA, transition_QI))
  np.testing.assert_array_equal(part_QAO, model.contributions(history_QX, item_QA))
  expected_QA = np.take_along_axis(np.asarray(model.scores(history_QX)), item_QA, 1)
  np.testing.assert_allclose(part_QAO.sum(2), expected_QA, rtol=1e-5, atol=1e-5)


def test_the_closest_past_item_of_every_modality(tables):
  """Also where all are farther than a right angle, so padding would be closer, and where an item
  has no content."""
  counted, text_IW = tables
  image_IW = np.random.default_rng(1).normal(size=(ITEMS + 1, 2)).astype(np.float32)
  image_IW /= np.linalg.norm(image_IW, axis=1, keepdims=True)
  image_IW[[0, 5]] = 0
  image_IW[3] = -image_IW[6]
  units = {"text": text_IW, "image": image_IW}
  model = EvidenceModel(counted, COUNTS).with_content(units, dict.fromkeys(units, CONTENT))
  history_QX = batch_of(HISTORIES).history_QX
  item_QA = np.tile([6, 1, 5, 9, 6], (len(history_QX), 1))
  closest_QAM = np.asarray(model.closest(history_QX, item_QA))
  assert closest_QAM.shape == (*item_QA.shape, 2)
  for place, history in enumerate(HISTORIES):
    for m, (_, unit_IW) in enumerate(sorted(units.items())):
      expected_A = [
        max((float(unit_IW[item] @ unit_IW[past]) for past in history[-FEW_NEWEST:]), default=-1)
        for item in item_QA[place]
      ]
      np.testing.assert_allclose(closest_QAM[place, :, m], expected_A, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(closest_QAM[0, 0, 0], -1, rtol=1e-6)  # [3] and item 6
  assert model_of(tables, content=False).closest(history_QX, item_QA).shape == (*item_QA.shape, 0)


def test_evidence_is_what_the_transitions_add_up_to(tables):
  amount_Q = np.asarray(model_of(tables).evidence(batch_of(HISTORIES).history_QX))
  for place, history in enumerate(HISTORIES):
    expected = terms(history, tables)["transitions"].sum()
    np.testing.assert_allclose(amount_Q[place], expected, rtol=1e-5, atol=1e-6)


def test_content_leaves_the_model_of_counts_as_it_is(tables):
  counted, unit_IW = tables
  model = EvidenceModel(counted, COUNTS)
  before = np.asarray(model.score_batch(batch_of(HISTORIES)))
  model.with_content({"text": unit_IW}, {"text": CONTENT})
  assert not model.unit_IW
  np.testing.assert_array_equal(model.score_batch(batch_of(HISTORIES)), before)


def test_a_modality_of_weight_0_changes_nothing(tables):
  counted, unit_IW = tables
  model = EvidenceModel(counted, COUNTS)
  with_zero = model.with_content({"text": unit_IW}, {"text": ContentSettings(0.5, 0.0)})
  np.testing.assert_allclose(
    with_zero.score_batch(batch_of(HISTORIES)), model.score_batch(batch_of(HISTORIES))
  )
  assert jnp.isfinite(with_zero.score_batch(batch_of([[]]))).all()


def test_new_items_are_ranked_by_content_and_change_no_other_score(tables):
  model, batch = model_of(tables), batch_of(HISTORIES)
  _, unit_IW = tables
  unit_EW = unit_IW[[2, 7]]  # the content of two old items
  larger = model.with_new_items({"text": unit_EW}, 2)
  assert larger.num_items == ITEMS + 2 and model.num_items == ITEMS
  before_QI, score_QI = model.score_batch(batch), np.asarray(larger.score_batch(batch))
  np.testing.assert_allclose(score_QI[:, : ITEMS + 1], before_QI, rtol=1e-6)
  (_, _, share_I, _), _ = tables
  for place, history in enumerate(HISTORIES):
    similar_I = terms(history, tables)["similar text"]
    expected_E = similar_I[[2, 7]] + COUNTS.popularity * np.log(share_I[1:].min())
    np.testing.assert_allclose(score_QI[place, ITEMS + 1 :], expected_E, rtol=1e-5, atol=1e-5)
  without = np.asarray(model.with_new_items({}, 1).score_batch(batch))[:, -1]
  np.testing.assert_allclose(without, COUNTS.popularity * np.log(share_I[1:].min()), rtol=1e-5)


def test_items_treated_as_new_are_scored_as_new_ones_are(tables):
  """Items 8 and 9 of the whole model, against a model that never had them and gets them added."""
  (follower_IK, count_IK, share_I, trend_I), unit_IW = tables
  share_I = share_I.copy()
  share_I[4], share_I[0] = 0.01, 0.001  # the rarest item is a known one; padding is rarer
  whole = model_of((EvidenceTables(follower_IK, count_IK, share_I, trend_I), unit_IW))
  whole = whole.with_newness(0.4)
  masked = whole.mask_as_new(np.arange(ITEMS + 1) >= 8)
  known_IK = follower_IK[:8] < 8
  cut = EvidenceTables(
    np.where(known_IK, follower_IK[:8], 0), count_IK[:8] * known_IK, share_I[:8], trend_I[:8]
  )
  added = model_of((cut, unit_IW[:8])).with_newness(0.4).with_new_items({"text": unit_IW[8:]}, 2)
  batch = batch_of(HISTORIES)  # one of them holds both
  item_QA = np.tile(np.arange(1, ITEMS + 1), (len(batch.target_Q), 1))
  for found, expected in zip(
    (masked.scores(batch.history_QX)[:, 1:], masked.contributions(batch.history_QX, item_QA)),
    (added.scores(batch.history_QX)[:, 1:], added.contributions(batch.history_QX, item_QA)),
    strict=True,
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(masked.is_new_I[...], [*[0] * 8, 1, 1])
  np.testing.assert_array_equal(added.is_new_I[...], masked.is_new_I[...])
  assert not whole.is_new_I[...].any()
  np.testing.assert_array_equal(
    added.mask_as_new(np.arange(ITEMS + 1) == 3).is_new_I[...], [0, 0, 0, 1, 0, 0, 0, 0, 1, 1]
  )
  without = model_of((cut, unit_IW[:8])).with_new_items({"text": unit_IW[8:]}, 2)
  difference_QI = added.scores(batch.history_QX) - without.scores(batch.history_QX)
  np.testing.assert_allclose(difference_QI[:, 1:], [[*[0] * 7, 0.4, 0.4]] * 8, atol=1e-6)
