"""Items appended to a trained model, against the formula in float64."""

import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.config.schema import default_config
from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.extend_catalogue import mask_as_new, with_new_items
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.stages import recommender_stage as stage

ITEMS, D, LEVELS, CODES = 12, 8, 3, 4
WIDTHS = {"collaborative": 5, "text": 9, "visual": 3}
KINDS = list(itertools.product(("tied", "untied", "mlp"), ("frequency", "sum"), (True, False)))


def random_array(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def recommender(encoder="tied", fusion="frequency", coded=True) -> RecommenderModel:
  rngs = nnx.Rngs(0)
  features = {m: random_array(ITEMS + 1, V, seed=V) + 1 for m, V in WIDTHS.items()}
  for x_IV in features.values():
    x_IV[0] = 0
  coded = WIDTHS if coded else ()
  rng = np.random.default_rng(1)
  codes = {m: rng.integers(CODES, size=(ITEMS + 1, LEVELS), dtype=np.int32) for m in coded}
  books = {m: random_array(LEVELS, CODES, D, seed=2) for m in coded}
  items = ItemEncoder(features, codes, books, D=D, kind=encoder, rngs=rngs)
  counts = np.arange(ITEMS + 1) ** 2
  gates = FrequencyFusion(counts, len(WIDTHS), kind=fusion, temperature=0.3, rngs=rngs)
  backbone = LlamaConfig(layers=1, D=D, F=12, N=2, K=2, H=4)
  model = RecommenderModel(items, gates, backbone, P=2, S=0, item_dropout=0.0, rngs=rngs)
  linears = [*items.project.values(), *(items.project_input or {}).values()]
  linears += gates.layers if fusion == "frequency" else []
  for n, linear in enumerate(linears):  # zero at the start: one left out would not show
    if linear.bias is not None:
      linear.bias[...] = jnp.asarray(random_array(*linear.bias.shape, seed=n))
  items.identity_ID[...] = jnp.asarray(random_array(ITEMS + 1, D, seed=3))
  return model


def table(model, m):
  return np.asarray(model.items.feature_IV[m][...])


def copies(model, of=(4, 9), modalities=("text", "visual")):
  """Features and codes with which these trained items come as new ones."""
  codes = {m: np.asarray(x[...])[list(of)] for m, x in model.items.code_IL.items()}
  codes = {m: x for m, x in codes.items() if m in modalities}
  return {m: table(model, m)[list(of)] for m in modalities}, codes


def gelu(x):
  return x * np.vectorize(statistics.NormalDist().cdf)(x)


def linear(layer, x):
  bias = 0 if layer.bias is None else np.float64(layer.bias[...])
  return np.float64(x) @ np.float64(layer.weight[...]) + bias


def weights_of_the_rarest(model, given):
  """Weights by origin: 0 for those that a new item lacks, the others renormalized."""
  if model.gates.kind == "sum":
    return {m: 1.0 for m in given}
  first, down, up, last = model.gates.layers
  logits = linear(last, gelu(linear(up, linear(down, gelu(linear(first, np.zeros(1)))))))
  gate = np.exp(logits / model.gates.temperature)
  gate = {m: gate[s] for s, m in enumerate(WIDTHS, start=1) if m in given}
  return {m: w / sum(gate.values()) for m, w in gate.items()}


def token(model, rows, codes):
  """An item token from its vectors and those codes that it has, without a learned row."""
  items = model.items
  project = items.project_input if items.kind == "untied" else items.project
  parts = [linear(project[m], rows[m]) for m in WIDTHS]
  for m, book in items.codebook_LCD.items():
    code_L = enumerate(codes.get(m, ()))
    parts.append(sum((np.float64(book[...])[level, code] for level, code in code_L), np.zeros(D)))
  if items.kind != "mlp":
    return sum(parts)
  return gelu(linear(items.out, np.maximum(linear(items.hidden, np.concatenate(parts)), 0)))


@pytest.mark.parametrize(("encoder", "fusion", "coded"), KINDS)
@pytest.mark.parametrize("given", [("text", "visual"), ("text",)])
def test_copies_of_trained_items_are_scored_and_read_by_the_formula(encoder, fusion, coded, given):
  model = recommender(encoder, fusion, coded)
  of = (4, 9)
  features, codes = copies(model, of, given)
  extended = with_new_items(model, features, codes)
  o_QD = random_array(3, D, seed=5)
  scores, tokens = extended.scores(o_QD), extended.items(jnp.arange(ITEMS + 1, ITEMS + 3))
  weight = weights_of_the_rarest(model, given)
  for n, item in enumerate(of):
    rows = {m: table(model, m)[item if m in given else slice(1, None)] for m in WIDTHS}
    rows = {m: x if m in given else np.float64(x).mean(0) for m, x in rows.items()}
    vector = sum(w * linear(model.items.project[m], rows[m]) for m, w in weight.items())
    np.testing.assert_allclose(
      scores[:, ITEMS + 1 + n], np.float64(o_QD) @ vector, rtol=1e-4, atol=1e-5
    )
    expected = token(model, rows, {m: x[n] for m, x in codes.items()})
    np.testing.assert_allclose(tokens[n], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("encoder", "fusion", "coded"), KINDS)
def test_adding_items_changes_no_score_of_the_others(encoder, fusion, coded):
  """Through the whole model; the model that they were added to stays as it was."""
  model = recommender(encoder, fusion, coded)
  (batch,) = batch_sequences([np.array([3, 1, 7, 2]), np.array([5, 12])], Layout(2, 8, 8))
  before = model.scores(model.hidden(batch))
  extended = with_new_items(model, *copies(model))
  o_QD = extended.hidden(batch)
  assert extended.scores(o_QD).shape == (8, ITEMS + 3)
  np.testing.assert_allclose(extended.scores(o_QD)[:, : ITEMS + 1], before, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(model.scores(model.hidden(batch)), before)
  vectors = np.asarray(extended.item_vectors())
  np.testing.assert_allclose(o_QD @ vectors.T, extended.scores(o_QD), rtol=1e-4, atol=1e-5)


def test_weights_sum_to_one_and_say_what_is_known():
  model = recommender()
  extended = with_new_items(model, *copies(model))
  weight = np.asarray(extended.gates.weights())
  np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(weight[: ITEMS + 1], model.gates.weights(), rtol=1e-5, atol=1e-6)
  assert not weight[ITEMS + 1 :, :2].any() and (weight[ITEMS + 1 :, 2:] > 0).all()
  sharp = recommender()
  sharp.gates.temperature = 1e-3  # the paper's: without the learned row's logit nothing may vanish
  weight = np.asarray(with_new_items(sharp, *copies(sharp)).gates.weights())
  np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-5)


def test_items_added_later_leave_those_before_alone_and_take_the_mean_of_the_trained():
  model = recommender()
  features, codes = copies(model)
  far = {"collaborative": np.full((2, 5), 1e3, np.float32)}
  once = with_new_items(model, features | far, codes | {"collaborative": codes["text"]})
  twice = with_new_items(once, *copies(model, of=(1,)))
  assert twice.gates.weights().shape == (ITEMS + 4, 4)
  before = once.gates.weights()
  np.testing.assert_allclose(twice.gates.weights()[: ITEMS + 3], before, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    table(twice, "collaborative")[-1],
    table(model, "collaborative")[1:].mean(0),
    rtol=1e-5,
    atol=1e-6,
  )
  assert once.gates.weights()[-1, 1] > 0  # given, so it counts


def test_items_that_differ_only_in_what_is_not_known_tie():
  """Copies of one item: neither its identity nor its collaborative vector speaks for it."""
  model = recommender()
  features, codes = copies(model, of=(4, 4))
  scores = with_new_items(model, features, codes).scores(random_array(3, D, seed=5))
  np.testing.assert_allclose(scores[:, -1], scores[:, -2], rtol=1e-5, atol=1e-6)
  assert np.abs(scores[:, -1] - scores[:, 4]).min() > 1e-3


MARKED = (4, 9)


def marked(items=MARKED):
  return jnp.zeros(ITEMS + 1, bool).at[jnp.asarray(items)].set(True)


@pytest.mark.parametrize(("encoder", "fusion", "coded"), KINDS)
def test_training_takes_items_for_new_as_they_will_be_appended(encoder, fusion, coded):
  """Read and scored like their copies by `with_new_items`; all others as ever."""
  model = recommender(encoder, fusion, coded)
  disguised, extended = mask_as_new(model, marked()), with_new_items(model, *copies(model, MARKED))
  o_QD = random_array(3, D, seed=5)
  scores, expected = disguised.scores(o_QD), np.array(model.scores(o_QD))
  expected[:, MARKED] = extended.scores(o_QD)[:, ITEMS + 1 :]
  np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
  every = jnp.arange(ITEMS + 1)
  tokens = np.array(model.items(every))
  tokens[list(MARKED)] = extended.items(jnp.arange(ITEMS + 1, ITEMS + 3))
  np.testing.assert_allclose(disguised.items(every), tokens, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_model_but_not_the_rows_of_items_taken_for_new():
  model = recommender(fusion="sum")
  graph, params, rest = nnx.split(model, nnx.Param, ...)

  def total(params):
    disguised = mask_as_new(nnx.merge(graph, params, rest), marked())
    tokens = disguised.items(jnp.arange(ITEMS + 1))
    return (tokens**2).sum() + (disguised.scores(random_array(3, D, seed=5)) ** 2).sum()

  slope = jax.grad(total)(params)["items"]
  moved_I = np.abs(slope["identity_ID"][...]).max(1) > 0
  np.testing.assert_array_equal(moved_I, ~np.asarray(marked()))
  assert np.abs(slope["project"]["collaborative"]["weight"][...]).max() > 0
  without = mask_as_new(model, jnp.ones(ITEMS + 1, bool))
  unread = without.items.code_vectors("collaborative", jnp.arange(ITEMS + 1))
  np.testing.assert_array_equal(unread, 0)


@pytest.mark.parametrize("negatives", [0, 6])
def test_a_step_takes_its_share_of_the_items_for_new(negatives):
  """Seen by the learned rows that get a gradient; sampled again for every key."""
  graph, params, rest = nnx.split(recommender(fusion="sum"), nnx.Param, ...)
  (batch,) = batch_sequences([np.arange(1, ITEMS + 1)], Layout(1, 16, 16))
  config = default_config().recommender
  config.negatives = negatives

  def learned(share, seed):
    config.as_new = share
    loss = stage.recommender_loss(config, np.ones(ITEMS + 1, int))
    key = jax.random.key(seed)
    slope = jax.grad(lambda p: loss(nnx.merge(graph, p, rest), batch, key)[0][0])(params)
    return np.abs(slope["items"]["identity_ID"][...]).max(1)[1:] > 0

  assert learned(0.0, 0).sum() >= ITEMS - 1  # the last item may be no negative
  some, others = learned(0.5, 0), learned(0.5, 1)
  assert 0 < some.sum() < ITEMS - 1 and (some != others).any()
  assert not learned(0.999, 0).any()


BAD = {
  "no modality": (lambda f, c: ({}, c), r"features of \[\]; expected some of"),
  "a modality of others": (lambda f, c: (f | {"audio": f["text"]}, c), "audio"),
  "width": (lambda f, c: (f | {"text": f["text"][:, 1:]}, c), r"features.text has shape \(2, 8\)"),
  "rows": (lambda f, c: (f | {"visual": f["visual"][:1]}, c), r"features.visual has .*\(1, 3\)"),
  "no codes": (lambda f, c: (f, {}), r"no codes of \['text', 'visual'\]"),
  "levels": (lambda f, c: (f, c | {"text": c["text"][:, 1:]}), "codes.text has shape"),
  "codes": (lambda f, c: (f, c | {"text": c["text"] + 4}), "codes.text: expected 0 to 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
  change, says = BAD[name]
  model = recommender()
  with pytest.raises(ValueError, match=says):
    with_new_items(model, *change(*copies(model)))
