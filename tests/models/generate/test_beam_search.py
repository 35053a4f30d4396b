"""The search against loops over prefixes, with a table of random scores in the place of a model."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesid_jax.models.generate.beam_search import beam_search, best_items, exact_scores
from mmesid_jax.quantize.id_trie import build_trie
from mmesid_jax.quantize.item_ids import NO_CODE, number_shared_codes

C, Q = 3, 2


def random_step(seed: int, levels: int, most: int):
  """A step whose scores depend on the whole prefix, as those of a model do, by a number
  that every prefix has; and the same as a function of a prefix."""
  rng = np.random.default_rng(seed)
  table = rng.normal(size=(Q, 997, most)).astype(np.float32)

  def step(level, number_QZ, beams):
    if beams is not None:
      number_QZ = np.take_along_axis(number_QZ, np.asarray(beams.parent_QZ), axis=1)
      number_QZ = (7 * number_QZ + np.asarray(beams.code_QZ) + 2) % 997
    log_p = np.take_along_axis(table, number_QZ[..., None].astype(int), axis=1)
    if beams is not None and beams.open is not None:  # further scores are not asked for
      log_p[:, beams.open :], number_QZ[:, beams.open :] = 1e9, 0
    return jax.numpy.asarray(log_p), number_QZ

  def log_p(q, prefix):
    number = 1
    for code in prefix:
      number = (7 * number + code + 2) % 997
    return table[q, number]

  return step, log_p


def added_by(ids, score, q, prefix) -> dict[int, float]:
  """code -> its log-probability, of the codes that follow the prefix in some ID."""
  level = len(prefix)
  codes = sorted({row[level] for row in ids if tuple(row[:level]) == tuple(prefix)})
  scores = [0.0 if code == NO_CODE else float(score(q, prefix)[code]) for code in codes]
  total = np.log(np.exp(scores).sum())
  return {code: x - total for code, x in zip(codes, scores, strict=True)}


def search_by_loops(id_IL, log_p, q, beams, left_out):
  prefixes, ids = [((), 0.0)], id_IL[1:].tolist()
  for level in range(id_IL.shape[1]):
    children = []
    for prefix, score in prefixes:
      for code, added in added_by(ids, log_p, q, prefix).items():
        children.append(((*prefix, code), np.float32(score + added)))
    if level == id_IL.shape[1] - 1:
      items = {tuple(row): item for item, row in enumerate(id_IL.tolist()) if item}
      children = [(p, s) for p, s in children if items[p] not in left_out]
    prefixes = sorted(children, key=lambda child: -child[1])[:beams]
  return [(items[prefix], score) for prefix, score in prefixes]


rows = st.integers(1, 3).flatmap(
  lambda levels: st.lists(
    st.lists(st.integers(0, C - 1), min_size=levels, max_size=levels), min_size=1, max_size=20
  )
)


@settings(max_examples=12, deadline=None)
@given(rows, st.integers(1, 30), st.integers(0, 99), st.sets(st.integers(1, 20), max_size=3))
def test_a_beam_finds_what_loops_find(rows, beams, seed, left_out):
  """Items that share their codes, prefixes with one child, fewer items than beams."""
  left_out = {item for item in left_out if item <= len(rows)}
  ids = number_shared_codes(np.array([[0] * len(rows[0]), *rows]), C)
  step, log_p = random_step(seed, len(ids.sizes), max(ids.sizes))
  left_out_QX = jax.numpy.asarray([[0, *left_out], [0, *([0] * len(left_out))]])
  start = np.ones((Q, 1), int)
  trie = build_trie(ids.id_IL)
  found = best_items(trie, beam_search(trie, step, start, beams), beams, left_out_QX)
  for q, out in enumerate((left_out, set())):
    expected = search_by_loops(ids.id_IL, log_p, q, beams, out)
    items, scores = np.asarray(found.item_QA[q]), np.asarray(found.score_QA[q])
    assert items[: len(expected)].tolist() == [item for item, _ in expected]
    np.testing.assert_allclose(
      scores[: len(expected)], [s for _, s in expected], rtol=1e-4, atol=1e-5
    )
    assert not items[len(expected) :].any() and np.isneginf(scores[len(expected) :]).all()


@settings(max_examples=8, deadline=None)
@given(rows, st.integers(0, 99))
def test_exact_scores_are_sums_over_the_codes_of_an_item(rows, seed):
  ids = number_shared_codes(np.array([[0] * len(rows[0]), *rows]), C)
  step, log_p = random_step(seed, len(ids.sizes), max(ids.sizes))
  found = exact_scores(build_trie(ids.id_IL), step, np.ones((Q, 1), int), len(rows) + 3)
  assert np.isneginf(found[:, [0, -2, -1]]).all()
  for q in range(Q):
    for item, row in enumerate(ids.id_IL.tolist()):
      rows_ = ids.id_IL[1:].tolist()
      steps = [(row[:level], code) for level, code in enumerate(row)] if item else []
      expected = sum(added_by(rows_, log_p, q, prefix)[code] for prefix, code in steps)
      assert not item or abs(found[q, item] - expected) < 1e-4


def test_of_equal_scores_the_lower_item_comes_first():
  """Items 1 and 3 share a code, so each has half of its probability."""
  ids = number_shared_codes(np.array([[0], [2], [0], [2], [1]]), C)

  def step(level, state, beams):
    return jax.numpy.zeros((1, 1 if beams is None else beams.parent_QZ.shape[1], C)), state

  trie = build_trie(ids.id_IL)
  found = best_items(trie, beam_search(trie, step, None, 9), 9)
  assert found.item_QA.tolist() == [[2, 4, 1, 3, 0, 0]]


def test_items_that_share_an_id_are_leaves_side_by_side():
  """New items are not told apart from the known ones that have their codes."""
  step, log_p = random_step(0, 2, C)
  trie = build_trie(np.array([[0, 0], [2, 1], [0, 0], [2, 1], [2, 1]]))
  assert trie.nodes == (1, 2, 4)
  start = np.ones((Q, 1), int)
  scores = exact_scores(trie, step, start, 5)
  np.testing.assert_array_equal(scores[:, 1], scores[:, 3])
  np.testing.assert_array_equal(scores[:, 1], scores[:, 4])
  found = best_items(trie, beam_search(trie, step, start, 4), 4)
  for q in range(Q):
    order = sorted([1, 2, 3, 4], key=lambda item: (-scores[q, item], item))
    assert found.item_QA[q].tolist() == order
