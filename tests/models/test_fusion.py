"""Fusion of scores against the formula in float64, in both orders of its products."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.dataset import Dataset, popularity
from mmesid_jax.models.fusion import FrequencyFusion, fusion_scorer, normalized_frequency
from mmesid_jax.models.item_encoder import ItemEncoder

ROWS, D = 12, 8
WIDTHS = {"collaborative": 5, "text": 9}
COUNTS = np.array([0, 0, 1, 3, 7, 7, 20, 400, 2, 1, 0, 55])


def random_array(shape, seed):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def encoder(kind="mlp", codebook_seed=0):
  features = {m: random_array((ROWS, V), V) for m, V in WIDTHS.items()}
  codes = {m: np.random.default_rng(V).integers(4, size=(ROWS, 3)) for m, V in WIDTHS.items()}
  books = {m: random_array((3, 4, D), codebook_seed) for m in WIDTHS}
  items = ItemEncoder(features, codes, books, D=D, kind=kind, rngs=nnx.Rngs(0))
  for m in WIDTHS:  # zero at the start: a bias left out would not show
    items.project[m].bias[...] = jnp.asarray(random_array(D, 1))
  return items


def gates(kind="frequency", temperature=0.5):
  g = FrequencyFusion(COUNTS, len(WIDTHS), kind=kind, temperature=temperature, rngs=nnx.Rngs(1))
  for layer in g.layers if kind == "frequency" else ():
    if layer.bias is not None:
      layer.bias[...] = jnp.asarray(random_array(layer.bias.shape, 2))
  return g


def formula(o, items, weight):
  """Target by target, item by item."""
  o, weight = np.float64(o), np.float64(weight)
  table = np.float64(items.identity_ID[...])
  found = np.zeros((len(o), ROWS))
  for q in range(len(o)):
    for i in range(ROWS):
      found[q, i] = weight[i, 0] * (o[q] @ table[i])
      for s, m in enumerate(WIDTHS, start=1):
        W, b = (np.float64(p[...]) for p in (items.project[m].weight, items.project[m].bias))
        found[q, i] += weight[i, s] * (o[q] @ (np.float64(items.feature_IV[m][i]) @ W + b))
  return found


@pytest.mark.parametrize("kind", ["mlp", "tied", "untied"])
@pytest.mark.parametrize("targets", [1, D, D + 1, 30])
def test_scores_equal_the_formula(targets, kind):
  items, o = encoder(kind), random_array((targets, D), 3)
  weight = np.float32(np.random.default_rng(4).random((ROWS, 3)))
  expected = formula(o, items, weight)
  np.testing.assert_allclose(
    fusion_scorer(o, items, weight).score_all(), expected, rtol=1e-4, atol=1e-5
  )


def test_both_orders_have_one_value_and_one_gradient():
  """The first targets of a large batch, scored alone."""
  items, o, cotangent = encoder(), random_array((D + 3, D), 5), random_array((3, ROWS), 6)
  weight = gates().weights()
  np.testing.assert_allclose(
    fusion_scorer(o, items, weight).score_all()[:3],
    fusion_scorer(o[:3], items, weight).score_all(),
    rtol=1e-4,
    atol=1e-5,
  )

  @nnx.jit(static_argnums=1)
  def gradient(items, count):
    def first_three(items):
      return (fusion_scorer(o[:count], items, weight).score_all()[:3] * cotangent).sum()

    return nnx.grad(first_three)(items)

  many, few = (nnx.to_flat_state(gradient(items, count)) for count in (D + 3, 3))
  for (path, a), (_, b) in zip(many, few, strict=True):
    np.testing.assert_allclose(a[...], b[...], rtol=1e-4, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize("kind", ["mlp", "tied"])
def test_codes_are_read_but_not_scored(kind):
  one, other, item = encoder(kind), encoder(kind, codebook_seed=9), jnp.arange(ROWS)
  assert np.abs(one(item) - other(item)).max() > 0.1
  o, weight = random_array((2, D), 7), gates().weights()
  np.testing.assert_array_equal(
    fusion_scorer(o, one, weight).score_all(), fusion_scorer(o, other, weight).score_all()
  )


def test_untied_features_are_read_through_other_projections_than_score():
  items, item = encoder("untied"), jnp.arange(ROWS)
  expected = np.float64(items.identity_ID[...])
  for m, linear in items.project_input.items():
    read = np.float64(items.feature_IV[m][...]) @ linear.weight[...] + linear.bias[...]
    np.testing.assert_allclose(items.feature_vectors(m, item), read, rtol=1e-4, atol=1e-5)
    assert np.abs(read - items.project[m](items.feature_IV[m][...])).max() > 0.1
    expected = expected + read
    book_LCD, code_IL = items.codebook_LCD[m][...], items.code_IL[m][...]
    expected = expected + sum(book_LCD[level][code_IL[:, level]] for level in range(len(book_LCD)))
  np.testing.assert_allclose(items(item), expected, rtol=1e-4, atol=1e-4)


def test_frequency_is_min_max_of_the_log_over_items():
  found = normalized_frequency(COUNTS)
  assert found.dtype == np.float32 and found[0] == 0
  np.testing.assert_allclose(found[1:], np.log(COUNTS[1:] + 1) / np.log(401), rtol=1e-6)
  met = normalized_frequency(np.array([0, 3, 7, 15]))  # padding's 0 is not the minimum
  np.testing.assert_allclose(met, [0, 0, 0.5, 1], rtol=1e-6)
  first = normalized_frequency(np.array([0, 15, 7, 3]))  # the first item counts too
  np.testing.assert_allclose(first, [0, 1, 0.5, 0], rtol=1e-6)


def test_equal_frequencies_are_no_nan():
  np.testing.assert_array_equal(normalized_frequency(np.array([0, 5, 5, 5])), 0)


def test_frequency_leaves_out_what_is_predicted():
  """Item 3 is validation or test target of everyone, so it is as rare as item 4, never met."""
  sequences = [[1, 1, 2, 3, 3], [1, 2, 3, 3], [1, 3, 3]]
  dataset = Dataset(
    items=np.concatenate(sequences).astype(np.int32),
    offsets=np.cumsum([0, *map(len, sequences)]),
    users=np.arange(3),
    num_items=4,
    fingerprint="",
    items_path=None,
  )
  found = normalized_frequency(popularity(dataset))
  np.testing.assert_allclose(found, [0, 1, np.log(3) / np.log(5), 0, 0], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_weights_equal_the_network_in_float64(temperature):
  g = gates(temperature=temperature)

  def gelu(x):  # exact, not by tanh
    return x * np.vectorize(statistics.NormalDist().cdf)(x)

  def linear(layer, x):
    return x @ np.float64(layer.weight[...]) + (0 if layer.bias is None else layer.bias[...])

  first, down, up, last = g.layers
  hidden = gelu(linear(first, np.float64(normalized_frequency(COUNTS))[:, None]))
  logits = linear(last, gelu(linear(up, linear(down, hidden)))) / temperature
  expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(g.weights(), expected, rtol=1e-5, atol=1e-6)
  assert up.bias is None and expected[1:].std(0).min() > 1e-3  # items differ, or this shows little


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_weights_sum_to_one_and_depend_on_frequency_alone(temperature):
  weight = gates(temperature=temperature).weights()
  assert weight.shape == (ROWS, 1 + len(WIDTHS)) and weight.dtype == jnp.float32
  np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-5)
  for a, b in ((2, 9), (4, 5), (1, 10)):  # equal counts
    # rows of one float32 product; the softmax divides their difference by the temperature
    np.testing.assert_allclose(weight[a], weight[b], rtol=1e-6 / temperature, atol=1e-6)


def test_sum_weighs_every_source_one_and_learns_nothing():
  g = gates("sum")
  np.testing.assert_array_equal(g.weights(), np.ones((ROWS, 1 + len(WIDTHS))))
  assert not jax.tree.leaves(nnx.state(g, nnx.Param))


def test_frequency_is_no_parameter():
  names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(gates(), nnx.Param))}
  assert names == {"layers"}
