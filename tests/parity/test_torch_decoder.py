"""Our beam search against transformers' constrained one, on the same weights."""

import numpy as np
import pytest
from flax import nnx
from generative import ITEMS, histories, recommender

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.generate.decoder import generate_items

pytestmark = pytest.mark.parity
pytest.importorskip("torch")
pytest.importorskip("transformers")
torch_decoder = pytest.importorskip("torch_decoder")


@pytest.mark.parametrize("beams", [2, 7, ITEMS])
@pytest.mark.parametrize("S", [0, 2])
def test_both_find_the_same_items_and_scores(S, beams):
  model, sequences = recommender(S), histories([5, 1, 9, 3])
  layout = Layout(2, 64, 4, S)
  samples = [np.append(h, 0) for h in sequences]
  (batch,) = batch_sequences(samples, layout, [len(h) for h in sequences])
  found = nnx.jit(generate_items, static_argnums=2)(model, batch, beams)
  items, scores = torch_decoder.TorchDecoder(model).generate(sequences, beams)
  np.testing.assert_array_equal(found.item_QA, items[batch.piece_Q])
  np.testing.assert_allclose(found.score_QA, scores[batch.piece_Q], atol=1e-4)
