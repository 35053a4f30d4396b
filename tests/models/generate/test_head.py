"""The loss of codes on packed rows against one sample per target, and against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generative import ITEMS, histories, recommender

from mmesid_jax.config.schema import default_config
from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.generate.decoder import score_all_items
from mmesid_jax.quantize.item_ids import NO_CODE
from mmesid_jax.stages.recommender_stage import recommender_loss
from mmesid_jax.training.optimizer import decay_mask


@nnx.jit
def loss_and_gradient_of(model, batch):
  def loss(model):
    codebook = model.generate.codebook(model.items)
    h_QLD = model.code_states(batch)
    log_p_Q = model.generate.item_log_probability(codebook, h_QLD, batch.target_Q)
    return -jnp.where(batch.weight_Q > 0, log_p_Q, 0).sum()

  return nnx.value_and_grad(loss)(model)


def loss_and_gradient(model, batches):
  return jax.tree.map(lambda *x: sum(x), *[loss_and_gradient_of(model, b) for b in batches])


@pytest.mark.parametrize("S", [0, 2])
def test_packed_loss_and_gradient_equal_one_sample_per_target(S):
  model, sequences = recommender(S), histories([1, 2, 5, 1, 7])
  layout = Layout(rows=2, row_length=64, targets=32, response=S, codes=model.generate.levels - 1)
  packed = list(batch_sequences(sequences, layout))
  alone = dataclasses.replace(layout, rows=1, targets=1)
  prefixes = [s[: t + 1] for s in sequences for t in range(len(s))]
  single = list(batch_sequences(prefixes, alone, [len(p) - 1 for p in prefixes]))
  (loss, gradient), (oracle, oracle_gradient) = (
    loss_and_gradient(model, batches) for batches in (packed, single)
  )
  np.testing.assert_allclose(loss, oracle, rtol=1e-5)
  pairs = list(zip(*map(jax.tree.leaves, (gradient, oracle_gradient)), strict=True))
  scale = max(float(jnp.abs(g).max()) for _, g in pairs)
  for ours, theirs in pairs:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale)
  flat = nnx.to_flat_state(gradient)
  assert all(jnp.abs(x[...]).max() > 0 for path, x in flat if path[0] == "generate")


def test_ranking_reads_the_same_states_with_codes_in_the_rows_and_without():
  model, sequences = recommender(2), histories([3, 6])
  layout = Layout(2, 64, 16, 2)
  (plain,) = batch_sequences(sequences, layout)
  (spelled,) = batch_sequences(
    sequences, dataclasses.replace(layout, codes=model.generate.levels - 1)
  )
  expected = nnx.jit(lambda m, b: m.hidden(b))(model, plain)
  for found in (model.hidden(spelled), model.code_states(spelled)[:, 0]):
    np.testing.assert_allclose(found[:9], expected[:9], atol=2e-5)


def test_log_probabilities_are_softmaxes_over_the_codes_that_may_follow():
  """By loops over the items that begin alike; an item that needs no number gets none."""
  model = recommender(0)
  head, rng = model.generate, np.random.default_rng(0)
  item_Q = np.array([3, 40, 7, 7, 1, 2, 9, 11])
  h_QLD = rng.normal(size=(len(item_Q), head.levels, 16)).astype(np.float32)
  codebook, number_CD, project_LDD = (
    np.asarray(x, np.float64)
    for x in (head.codebook(model.items), head.number_CD[...], head.project_LDD[...])
  )
  ids = np.asarray(head.id_IL[...])[1:].tolist()
  assert {ids[item - 1][-1] == NO_CODE for item in item_Q} == {True, False}
  expected = np.zeros(len(item_Q))
  for q, item in enumerate(item_Q):
    for level, code in enumerate(ids[item - 1]):
      follow = sorted({other[level] for other in ids if other[:level] == ids[item - 1][:level]})
      if follow == [NO_CODE]:
        continue
      state = h_QLD[q, level] + h_QLD[q, level] @ project_LDD[level]
      table_CD = [*codebook, number_CD][level]
      score = table_CD @ state + np.asarray(head.bias[str(level)][...])
      expected[q] += score[code] - np.log(np.exp(score[follow]).sum())
  found = head.item_log_probability(head.codebook(model.items), h_QLD, item_Q)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_probabilities_of_all_items_add_up_to_one():
  model = recommender(2)
  layout = Layout(2, 64, 4, 2)
  (batch,) = batch_sequences(histories([5, 2]), layout, [4, 1])
  log_p_QI = np.asarray(nnx.jit(score_all_items)(model, batch), np.float64)
  np.testing.assert_allclose(np.exp(log_p_QI).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("S", [0, 2])
def test_code_tokens_are_codebook_vectors_and_that_of_their_level(S):
  """In the rows' own order: after the history and the response, one code token a level."""
  model, (sequence,) = recommender(S), histories([4])
  head = model.generate
  codes = head.levels - 1
  layout = Layout(1, 64, 1, S, codes=codes)
  (batch,) = batch_sequences([sequence], layout, [3])
  found = np.asarray(model.tokens(batch))[0]
  places = np.flatnonzero(batch.spelled_RT[0])
  id_L = np.asarray(head.id_IL[...])[sequence[3]]
  codebook, place_LD = np.asarray(model.items.codebook_LCD["a"][...]), np.asarray(head.place_LD)
  expected = [codebook[level, id_L[level]] + place_LD[level] for level in range(codes)]
  assert len(places) == codes and (np.diff(places) == 1).all()
  np.testing.assert_allclose(found[places], 1.5 * np.stack(expected), atol=1e-5)


def test_biases_do_not_decay_and_matrices_do():
  decays = decay_mask(nnx.state(recommender(0).generate, nnx.Param))
  found = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(decays)}
  kept = {name for name, decays in found.items() if not decays}
  assert len(kept) == 4 and all("bias" in name for name in kept) and len(found) == 4 + 3


def test_the_loss_of_both_heads_is_their_sum():
  """Ranking reads the first state of each target; the codes' loss has its weight."""
  model, sequences = recommender(0), histories([4, 2, 6])
  config = default_config().recommender
  config.update(head="both")
  config.generate.weight = 0.3
  layout = Layout(2, 64, 16, 0, codes=model.generate.levels - 1)
  (batch,) = batch_sequences(sequences, layout)
  counts_I, key = np.ones(ITEMS + 1, np.int64), jax.random.key(0)
  losses = {}
  for head in ("rank", "generate", "both"):
    config.head = head
    (total, weight), scalars = recommender_loss(config, counts_I)(model, batch, key)
    losses[head] = float(total / weight)
  assert losses["both"] == pytest.approx(losses["rank"] + 0.3 * losses["generate"], rel=1e-5)
  assert float(scalars["rank_loss"]) == pytest.approx(losses["rank"], rel=1e-5)
  assert float(scalars["code_loss"]) == pytest.approx(losses["generate"], rel=1e-5)
  score_QI = np.asarray(model.scores(model.hidden(batch)), np.float64)[:, 1:]
  log_p_QI = score_QI - np.log(np.exp(score_QI).sum(1, keepdims=True))
  used = np.asarray(batch.weight_Q) > 0
  expected = -log_p_QI[np.arange(len(used)), np.maximum(batch.target_Q, 1) - 1][used].mean()
  assert losses["rank"] == pytest.approx(expected, rel=1e-4)
