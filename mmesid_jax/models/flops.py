"""Floating-point operations of a training step, counted from shapes. benchmarks/FLOPS.md tells the
convention; recomputation, padding and element-wise work do not count.
"""

import math
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.fusion import projects_catalogue
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.sasrec import SASRec
from mmesid_jax.models.sequence_recommender import RecommenderModel


class Work(NamedTuple):
  """How much a step has to do: tokens of the rows and of the prompt, (query, key) pairs that
  attention weighs, distinct items, targets."""

  tokens: int
  prompt: int
  pairs: int
  items: int
  targets: int


def useful(batch: Batch, prompt: int) -> Work:
  """What a batch asks for: real tokens, real targets, pairs that a query sees."""
  tokens = np.count_nonzero(batch.segment_RT)
  own_branch = (batch.response_RT + 1)[batch.branch_RT > 0].sum()
  pairs = prompt * (prompt + 1) // 2 + tokens * prompt + batch.horizon_RT.sum() + own_branch
  items, targets = np.count_nonzero(batch.item_N), np.count_nonzero(batch.weight_Q)
  return Work(int(tokens), prompt, int(pairs), int(items), int(targets))


def product(rows: int, weights: int, *, trained: bool = True, reaches_input: bool = True) -> int:
  """x W of so many rows: 2 operations a weight forward, 2 for the gradient of x where something
  trained stands before it, 2 for the gradient of W where W is trained."""
  return 2 * rows * weights * (1 + reaches_input + trained)


def llama(c: LlamaConfig, work: Work) -> int:
  """All blocks, prompt and rows; what they read is trained."""
  tokens = work.prompt + work.tokens
  total = product(tokens, c.weights_a_layer, trained=c.weights == "trained")
  # q k and p v, each with the gradients of both of its factors.
  total += 2 * product(work.pairs, c.N * c.H)
  if c.lora:
    for d_in, d_out in (c.projections[name] for name in c.lora.targets):
      total += product(tokens, c.lora.rank * (d_in + math.prod(d_out)))
  return c.layers * total


def recommender(model: RecommenderModel, work: Work) -> int:
  """A step of the recommender: item encoder, backbone, scores of the whole catalogue."""
  I, D = model.items.identity_ID.shape  # noqa: E741
  widths = [model.items.feature_IV[m].shape[1] for m in model.items.modalities]
  total = product(work.items, D * sum(widths), reaches_input=False)
  if model.items.kind == "mlp":
    layers = (model.items.hidden, model.items.out)
    total += product(work.items, sum(layer.weight.size for layer in layers))
  total += llama(model.backbone.config, work) + product(work.targets, I * D)
  for V in widths:
    if projects_catalogue(work.targets, D):
      total += product(I, D * V, reaches_input=False)
    else:
      total += product(work.targets, D * V) + product(work.targets, I * V, trained=False)
  return total


def sasrec(model: SASRec, work: Work) -> int:
  """A step of SASRec with the softmax over all items."""
  I, D = model.item_ID.shape  # noqa: E741
  a_block = product(work.tokens, 6 * D * D) + 2 * product(work.pairs, D)
  return len(model.blocks) * a_block + product(work.targets, I * D)


def mm_rqvae(model: MMRQVAE, items: int) -> int:
  """A step of the semantic IDs on so many items: autoencoders and the search for the nearest code.
  The losses, which grow with the square of the batch, do not count."""
  total = 0
  for part in model.by_modality.values():
    first, *rest = (
      layer.kernel.size for mlp in (part.encoder, part.decoder) for layer in mlp.layers
    )
    total += product(items, first, reaches_input=False) + product(items, sum(rest))
    total += product(items, part.quantizer.codebook_LCD.size, trained=False, reaches_input=False)
  return total
