"""Generation reads what training wrote: the same states, token by token or all at once."""

import numpy as np
import pytest
from flax import nnx
from generative import ITEMS, histories, recommender

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.generate.decoder import generate_items, score_all_items
from mmesid_jax.models.layers.lora import LoRAConfig


def spelled_scores(model, sequences, S) -> np.ndarray:
  """log p [users, items] by training's path: every item is once every user's target."""
  layout = Layout(2, 64, 40, S, codes=model.generate.levels - 1)

  @nnx.jit
  def log_p(model, batch):
    table = model.generate.codebook(model.items)
    return model.generate.item_log_probability(table, model.code_states(batch), batch.target_Q)

  found = np.zeros((len(sequences), ITEMS + 1))
  pairs = [(u, i) for u in range(len(sequences)) for i in range(1, ITEMS + 1)]
  samples = [np.append(sequences[u], i) for u, i in pairs]
  for batch in batch_sequences(samples, layout, [len(s) - 1 for s in samples]):
    scores = log_p(model, batch)
    for q in np.flatnonzero(batch.weight_Q):
      found[pairs[batch.piece_Q[q]]] = scores[q]
  return found


def reading_batch(sequences, S):
  (batch,) = batch_sequences(
    [np.append(s, 1) for s in sequences], Layout(2, 64, 8, S), [len(s) for s in sequences]
  )
  return batch


LORA = LoRAConfig(rank=2, alpha=4.0)
# response tokens, and what else the model has
PARTS = [
  (0, {}),
  (2, {"window": 2}),
  (0, {"window": 6}),
  (2, {"qkv_bias": True, "head_norms": True}),
  (0, {"weights": "float32", "lora": LORA}),
  (2, {"modalities": ("a", "b"), "levels": 2}),
]


@pytest.mark.parametrize(("S", "parts"), PARTS, ids=str)
def test_exact_scores_are_those_of_training(S, parts):
  model, sequences = recommender(S, **parts), histories([5, 0, 1, 9])
  batch = reading_batch(sequences, S)
  scores = nnx.jit(score_all_items)(model, batch)
  used = batch.weight_Q > 0
  expected = spelled_scores(model, sequences, S)[batch.piece_Q[used]]
  np.testing.assert_allclose(scores[used, 1:], expected[:, 1:], atol=1e-4)
  assert np.isneginf(scores[:, 0]).all()


def test_in_bfloat16_scores_differ_from_those_of_training_by_its_rounding():
  """A state has eight bits; the sums of attention have more on both paths."""
  sequences = histories([5, 0, 1, 9])
  batch, scores = reading_batch(sequences, 0), {}
  for compute in ("bfloat16", "float32"):
    model = recommender(0, compute=compute)
    scores[compute] = np.asarray(nnx.jit(score_all_items)(model, batch))[:, 1:]
  spread = scores["float32"].std()
  assert np.abs(scores["bfloat16"] - scores["float32"]).mean() < 0.03 * spread


@pytest.mark.parametrize("S", [0, 2])
def test_a_beam_as_wide_as_the_catalogue_is_exact(S):
  model, sequences = recommender(S), histories([5, 0, 1, 9])
  batch = reading_batch(sequences, S)
  exact = np.asarray(nnx.jit(score_all_items)(model, batch))
  found = nnx.jit(generate_items, static_argnums=2)(model, batch, ITEMS)
  order = np.argsort(-exact[:, 1:], axis=1, kind="stable") + 1
  np.testing.assert_array_equal(found.item_QA, order)
  np.testing.assert_allclose(found.score_QA, np.take_along_axis(exact, order, axis=1), atol=1e-4)
