"""The loss of codes on packed rows against one sample per target, and against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generative import histories, recommender

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.quantize.item_ids import NO_CODE


@nnx.jit
def loss_and_gradient_of(model, batch):
  def loss(model):
    table_KCD = model.generate.table(model.items)
    h_QKD = model.code_states(batch)
    log_p_Q = model.generate.item_log_probability(table_KCD, h_QKD, batch.target_Q)
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


def test_log_probabilities_are_a_softmax_over_the_codes_of_a_level():
  model = recommender(0)
  head, rng = model.generate, np.random.default_rng(0)
  h_QKD = rng.normal(size=(5, head.levels, 16)).astype(np.float32)
  item_Q = np.array([3, 40, 7, 7, 1])
  table_KCD = np.asarray(head.table(model.items), np.float64)
  code_IK = np.asarray(head.code_IK[...])
  assert (code_IK[1:, -1] == NO_CODE).any() and (code_IK[1:, -1] != NO_CODE).any()
  expected = np.zeros(5)
  for q, item in enumerate(item_Q):
    for k, code in enumerate(code_IK[item]):
      if code != NO_CODE:
        state = h_QKD[q, k] @ np.asarray(head.project_KDD[k], np.float64)
        score = table_KCD[k] @ state + np.asarray(head.bias_KC[k])
        score = score[: head.sizes[k]]
        expected[q] += score[code] - np.log(np.exp(score - score.max()).sum()) - score.max()
  found = head.item_log_probability(head.table(model.items), h_QKD, item_Q)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
