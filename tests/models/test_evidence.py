"""Scores by counts and content, against the formula in float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.evidence import ContentSettings, CountSettings, EvidenceModel

ITEMS, FOLLOWERS, WIDTH = 9, 3, 4
HISTORIES = [[3], [5, 1, 5, 2], [9, 8, 7, 6, 5, 4, 3, 2, 1], []]  # oldest first
COUNTS = CountSettings(recency=0.6, tail=0.25, tau=0.7, popularity=-0.3)
CONTENT = ContentSettings(recency=0.8, weight=1.5)
HISTORY = 6  # newest items that count


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
  return follower_IK.astype(np.int32), count_IK, share_I, unit_IW


def formula(history, tables, content: bool) -> np.ndarray:
  follower_IK, count_IK, share_I, unit_IW = tables
  newest = history[::-1][:HISTORY]
  score_I = COUNTS.popularity * np.log(share_I.astype(np.float64))
  sizes = [COUNTS.recency**age for age in range(len(newest))]
  for size, item in zip(sizes, newest, strict=True):
    w = (1 - COUNTS.tail) * size / sum(sizes) + COUNTS.tail / len(newest)
    for follower, count in zip(follower_IK[item], count_IK[item], strict=True):
      score_I[follower] += w * np.log1p(count / COUNTS.tau)
  query = sum(
    (CONTENT.recency**age * unit_IW[item].astype(np.float64) for age, item in enumerate(newest)),
    np.zeros(WIDTH),
  )
  if content and newest:
    score_I += CONTENT.weight * (unit_IW @ query) / np.linalg.norm(query)
  return score_I[1:]


def batch_of(histories):
  packer = Packer(Layout(rows=4, row_length=16, targets=8, history=HISTORY))
  for place, history in enumerate(histories):
    assert packer.add(place, np.array([*history, 7]), len(history))
  return packer.batch()


@pytest.mark.parametrize("content", [False, True])
def test_scores_equal_the_formula(tables, content):
  follower_IK, count_IK, share_I, unit_IW = tables
  model = EvidenceModel(follower_IK, count_IK, share_I, COUNTS)
  if content:
    model = model.with_content({"text": unit_IW}, {"text": CONTENT})
  score_QI = np.asarray(model.score_batch(batch_of(HISTORIES)))
  for place, history in enumerate(HISTORIES):
    expected = formula(history, tables, content)
    np.testing.assert_allclose(score_QI[place, 1:], expected, rtol=1e-5, atol=1e-6)


def test_content_leaves_the_model_of_counts_as_it_is(tables):
  follower_IK, count_IK, share_I, unit_IW = tables
  model = EvidenceModel(follower_IK, count_IK, share_I, COUNTS)
  before = np.asarray(model.score_batch(batch_of(HISTORIES)))
  model.with_content({"text": unit_IW}, {"text": CONTENT})
  assert not model.unit_IW
  np.testing.assert_array_equal(model.score_batch(batch_of(HISTORIES)), before)


def test_a_modality_of_weight_0_changes_nothing(tables):
  follower_IK, count_IK, share_I, unit_IW = tables
  model = EvidenceModel(follower_IK, count_IK, share_I, COUNTS)
  with_zero = model.with_content({"text": unit_IW}, {"text": ContentSettings(0.5, 0.0)})
  np.testing.assert_allclose(
    with_zero.score_batch(batch_of(HISTORIES)), model.score_batch(batch_of(HISTORIES))
  )
  assert jnp.isfinite(with_zero.score_batch(batch_of([[]]))).all()
