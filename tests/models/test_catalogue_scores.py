"""The whole catalogue, a chunk and chosen items: one formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmesid_jax.losses.next_item import (
  catalogue_cross_entropy,
  chunked_cross_entropy,
  cross_entropy,
  sampled_cross_entropy,
)
from mmesid_jax.models.catalogue_scores import Scorer

Q, ITEMS = 6, 11
TARGET = np.array([3, 1, 0, 10, 0, 3])  # 0 = unused place
WEIGHT = np.float32([1, 0.5, 0, 2, 0, 1])


def random_array(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def scorer(sources: int = 2) -> Scorer:
  widths = (4, 3)[:sources]
  return Scorer(
    query=tuple(random_array(Q, v, seed=v) for v in widths),
    table=tuple(random_array(ITEMS, v, seed=10 + v) for v in widths),
    offset=(None, random_array(Q, seed=5))[:sources],
    weight_IO=random_array(ITEMS, 2, seed=6) if sources == 2 else None,
  )


def test_the_last_row_is_an_item_unless_there_are_fewer_items_than_rows():
  assert scorer().last_item == ITEMS - 1
  assert dataclasses.replace(scorer(), num_items=7).last_item == 7


def formula(s: Scorer) -> np.ndarray:
  found = np.zeros((Q, ITEMS))
  for n, (query, table) in enumerate(zip(s.query, s.table, strict=True)):
    part = np.float64(query) @ np.float64(table).T
    part += 0 if s.offset[n] is None else np.float64(s.offset[n])[:, None]
    found += part * (1 if s.weight_IO is None else np.float64(s.weight_IO)[:, n])
  return found


@pytest.mark.parametrize("sources", [1, 2])
def test_all_chosen_and_own_scores_equal_the_formula(sources):
  s, item = scorer(sources), np.array([4, 0, 4, 10])
  expected = formula(s)
  np.testing.assert_allclose(s.score_all(), expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(s.score_items(item), expected[:, item], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    s.score_targets(TARGET), expected[np.arange(Q), TARGET], rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
@pytest.mark.parametrize("sources", [1, 2])
def test_chunks_change_neither_loss_nor_gradient(sources, chunk):
  def whole(s):
    return cross_entropy(s.score_all(), TARGET, WEIGHT)[0]

  def by_chunks(s):
    return chunked_cross_entropy(s, TARGET, WEIGHT, chunk)[0]

  s = scorer(sources)
  s = dataclasses.replace(s, query=tuple(30 * q for q in s.query))  # exp overflows
  value, gradient = jax.value_and_grad(by_chunks)(s)
  expected, expected_gradient = jax.value_and_grad(whole)(s)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True)
  for ours, theirs in pairs:
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_chunk_holds_its_scores_only():
  """XLA's account of the gradient: the scores of all items, once, would be 4 MiB."""
  rows, items, chunk = 64, 2**14, 2**8
  s = Scorer((jnp.ones((rows, 2)),), (jnp.ones((items, 2)),))
  args = jnp.ones(rows, jnp.int32), jnp.ones(rows)

  def temporary(loss):
    gradient = jax.jit(jax.grad(lambda s: loss(s)[0]))
    return gradient.lower(s).compile().memory_analysis().temp_size_in_bytes

  assert temporary(lambda s: cross_entropy(s.score_all(), *args)) >= 4 * rows * items
  assert temporary(lambda s: chunked_cross_entropy(s, *args, chunk)) < rows * items


def test_chunks_are_taken_where_asked_for_or_where_scores_are_many(monkeypatch):
  from mmesid_jax.losses import next_item

  asked = []
  monkeypatch.setattr(next_item, "chunked_cross_entropy", lambda *args: asked.append(args[-1]))
  catalogue_cross_entropy(scorer(), TARGET, WEIGHT)
  assert not asked
  catalogue_cross_entropy(scorer(), TARGET, WEIGHT, chunk=4)
  monkeypatch.setattr(next_item, "MAX_SCORES", 3 * Q)
  catalogue_cross_entropy(scorer(), TARGET, WEIGHT)
  assert asked == [4, 3]


def test_sampled_softmax_estimates_the_whole_one_without_bias():
  """The mean of exp(loss), the sum over the catalogue, over many draws from an uneven pool."""
  s, N, draws = scorer(), 5, 4000
  p_I = np.arange(ITEMS) / np.arange(ITEMS).sum()  # padding is never drawn
  target = np.full(Q, 3)

  def inverse_probability(negative_N, q):
    one = jnp.where(jnp.arange(Q) == q, 1.0, 0.0)
    log_expected = jnp.log(N * jnp.asarray(p_I)[negative_N])
    return jnp.exp(sampled_cross_entropy(s, target, one, negative_N, log_expected)[0])

  drawn_DN = np.random.default_rng(0).choice(ITEMS, (draws, N), p=p_I)
  estimate = jax.vmap(jax.vmap(inverse_probability, (None, 0)), (0, None))(drawn_DN, jnp.arange(Q))
  scores = formula(s)
  exact = np.exp(scores[:, 1:]).sum(1) / np.exp(scores[:, 3])
  error = np.asarray(estimate).std(0) / draws**0.5
  assert (np.abs(np.asarray(estimate).mean(0) - exact) < 4 * error).all()


def test_every_item_once_is_the_whole_softmax():
  s, negative = scorer(), np.arange(1, ITEMS)
  found, weight = sampled_cross_entropy(s, TARGET, WEIGHT, negative, np.zeros(ITEMS - 1))
  expected, expected_weight = cross_entropy(s.score_all(), TARGET, WEIGHT)
  np.testing.assert_allclose([found, weight], [expected, expected_weight], rtol=1e-5)


def test_a_chunk_of_nothing_is_refused():
  with pytest.raises(ValueError, match="chunk=0: expected at least 1 item"):
    chunked_cross_entropy(scorer(), TARGET, WEIGHT, 0)
