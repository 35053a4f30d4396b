"""The count of operations for MFU against XLA's own, of the compiled gradient: layers unrolled
and nothing recomputed, since XLA counts the body of a loop once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.packing import Batch, Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.losses.next_item import cross_entropy
from mmesid_jax.losses.semantic_id_loss import semantic_id_loss
from mmesid_jax.models import flops
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.generate.head import GenerativeHead
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import LlamaConfig, causal_mask
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.packed_rows import visibility_mask, window_mask
from mmesid_jax.models.residual_quantizer import QuantizerConfig
from mmesid_jax.models.sasrec import SASRec
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.planning.memory import largest_trie
from mmesid_jax.quantize.item_ids import ItemIds

LLAMA = LlamaConfig(layers=2, D=256, F=768, N=4, K=2, H=64, unroll=2)
LORA = dataclasses.replace(LLAMA, weights="float32", lora=LoRAConfig(16, 32.0))
WIDTHS = {"collaborative": 64, "text": 384}
ITEMS, P = 1500, 16


def compiled_flops(make, loss, data) -> float:
  """XLA's count of operations in loss(model, data) and its gradient; nothing is allocated."""
  graph, trained, frozen = nnx.split(nnx.eval_shape(make), nnx.Param, ...)

  def value(trained, frozen, data):
    return loss(nnx.merge(graph, trained, frozen), data)

  compiled = jax.jit(jax.value_and_grad(value)).lower(trained, frozen, data).compile()
  return compiled.cost_analysis()["flops"]


def padded(layout: Layout, prompt: int) -> flops.Work:
  """Work of the compiled step: every place of the batch, and every pair, seen or not."""
  tokens = layout.rows * layout.row_length
  pairs = prompt * prompt + tokens * (prompt + layout.row_length)
  return flops.Work(tokens, prompt, pairs, tokens + 1, layout.targets)


def recommender(llama: LlamaConfig, kind: str, C: int = 32, **parts) -> RecommenderModel:
  rngs = nnx.Rngs(0)
  features = {m: np.zeros((ITEMS + 1, V), np.float32) for m, V in WIDTHS.items()}
  codes = {m: np.zeros((ITEMS + 1, 4), np.int32) for m in WIDTHS}
  books = {m: np.zeros((4, C, llama.D), np.float32) for m in WIDTHS}
  items = ItemEncoder(features, codes, books, D=llama.D, kind=kind, rngs=rngs)
  counts_I = np.arange(ITEMS + 1)
  gates = FrequencyFusion(counts_I, len(WIDTHS), kind="sum", temperature=1.0, rngs=rngs)
  return RecommenderModel(items, gates, llama, P=P, S=2, item_dropout=0.0, rngs=rngs, **parts)


def catalogue_loss(model, batch: Batch) -> jax.Array:
  return cross_entropy(model.scores(model.hidden(batch)), batch.target_Q, batch.weight_Q)[0]


@pytest.mark.parametrize(
  ("llama", "kind", "targets"),  # targets on either side of the width: both orders of scoring
  [(LLAMA, "tied", 512), (LLAMA, "mlp", 128), (LORA, "tied", 128), (LORA, "untied", 512)],
  ids=["full-tied", "full-mlp", "lora-tied", "lora-untied"],
)
def test_recommender(llama, kind, targets):
  layout = Layout(rows=4, row_length=256, targets=targets, response=2)
  counted = compiled_flops(lambda: recommender(llama, kind), catalogue_loss, Packer(layout).batch())
  ours = flops.recommender_flops(recommender(llama, kind), padded(layout, P))
  assert ours == pytest.approx(counted, rel=0.05)


def test_codes_of_a_generative_head():
  """As many codes as items would be ranked, so that they count."""
  K, C = 4, 1024
  layout = Layout(rows=4, row_length=256, targets=128, response=2, codes=K - 1)

  def make():
    ids = ItemIds(jnp.zeros((ITEMS + 1, K), jnp.int32), (C,) * K, 0)
    trie = largest_trie(ITEMS, ids.sizes)
    head = GenerativeHead(ids, trie, ["text"], K, LLAMA.D, rngs=nnx.Rngs(0))
    return recommender(LLAMA, "tied", C, generate=head)

  def loss(model, batch):
    codebook, h_QLD = model.generate.codebook(model.items), model.code_states(batch)
    return model.generate.item_log_probability(codebook, h_QLD, batch.target_Q).sum()

  counted = compiled_flops(make, loss, Packer(layout).batch())
  ours = flops.recommender_flops(nnx.eval_shape(make), padded(layout, P), ranks=False)
  assert ours == pytest.approx(counted, rel=0.05)


def test_sasrec():
  def make():
    return SASRec(ITEMS, D=256, layers=2, heads=4, positions=256, rate=0.0, rngs=nnx.Rngs(0))

  layout = Layout(rows=4, row_length=256, targets=512)
  counted = compiled_flops(make, catalogue_loss, Packer(layout).batch())
  assert flops.sasrec_flops(make(), padded(layout, 0)) == pytest.approx(counted, rel=0.05)


def test_mm_rqvae():
  def make():
    return MMRQVAE(
      WIDTHS,
      hidden=(512, 512),
      D=256,
      quantizer=QuantizerConfig(4, 256, learning="gradient"),
      rngs=nnx.Rngs(0),
    )

  def loss(model, features):
    return semantic_id_loss(
      model,
      features,
      reconstruction="mse",
      bandwidths=(0.5,),
      alignment="none",
      temperature=1.0,
      reconstruction_weight=1.0,
      quantization_weight=1.0,
      alignment_weight=0.0,
    )[0]

  counted = compiled_flops(make, loss, {m: jnp.zeros((64, V)) for m, V in WIDTHS.items()})
  assert flops.mm_rqvae_flops(make(), 64) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("response", [0, 2])
@pytest.mark.parametrize("window", [None, 4])
def test_useful_work_is_what_the_mask_lets_through(response, window):
  packer = Packer(Layout(rows=2, row_length=32, targets=40, response=response))
  for piece, length in enumerate((3, 5, 9)):
    assert packer.add(piece, np.arange(1, length + 1), first_target=1)
  batch = packer.batch()
  work = flops.useful_work(batch, 7, window)
  assert (work.tokens, work.targets) == (packer.tokens, 2 + 4 + 8)
  assert work.items == 8  # the last item of a sequence is never read
  mask_RTY = visibility_mask(batch, prompt=7)
  if window is not None:
    mask_RTY &= window_mask(batch.position_RT, 7, window)
  of_tokens = mask_RTY[batch.segment_RT > 0].sum()
  assert work.pairs == causal_mask(7, window).sum() + of_tokens
