"""Floating-point operations of a training step, counted from shapes.

The convention is in benchmarks/FLOPS.md. Recomputation, padding and element-wise operations do not
count.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.fusion import should_project_catalogue
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.sasrec import SASRec
from mmesid_jax.models.sequence_recommender import RecommenderModel


class Work(NamedTuple):
  """Amounts that determine the operations of a step."""

  tokens: int  # of the rows
  prompt: int  # tokens of the prompt
  pairs: int  # (query, key) pairs of attention
  items: int  # distinct items
  targets: int


def useful_work(batch: Batch, prompt: int, window: int | None = None) -> Work:
  """Work of a batch without padding; prompt: number of prompt tokens; window: of attention, in
  positions."""
  tokens = np.count_nonzero(batch.segment_RT)
  # A token sees itself and every position before it, as if its target were alone.
  keys_E = 1 + np.append(np.arange(prompt), prompt + batch.position_RT[batch.segment_RT > 0])
  pairs = (keys_E if window is None else np.minimum(keys_E, window)).sum()
  items, targets = np.count_nonzero(batch.item_E), np.count_nonzero(batch.weight_Q)
  return Work(int(tokens), prompt, int(pairs), int(items), int(targets))


def product_flops(
  rows: int, weights: int, *, trained: bool = True, reaches_input: bool = True
) -> int:
  """Operations of x W for x of `rows` rows: 2 per weight and row, and 2 per gradient.

  trained: there is a gradient of W. reaches_input: there is a gradient of x, because x depends on
  something trained.
  """
  return 2 * rows * weights * (1 + reaches_input + trained)


def llama_flops(c: LlamaConfig, work: Work) -> int:
  """All blocks, for prompt and rows; their input is trained."""
  tokens = work.prompt + work.tokens
  total = product_flops(tokens, c.weights_per_layer, trained=c.weights == "trained")
  # q k and p v, each with the gradients of both factors.
  total += 2 * product_flops(work.pairs, c.N * c.H)
  if c.lora:
    for d_in, d_out in (c.projections[name] for name in c.lora.targets):
      total += product_flops(tokens, c.lora.rank * (d_in + math.prod(d_out)))
  return c.layers * total


def recommender_flops(model: RecommenderModel, work: Work, *, ranks: bool = True) -> int:
  """A training step of the recommender: item encoder and backbone, the scores of all items where it
  `ranks`, and where it generates those of all codes."""
  I, D = model.items.identity_ID.shape  # noqa: E741
  widths = [model.items.feature_IV[m].shape[1] for m in model.items.modalities]
  total = product_flops(work.items, D * sum(widths), reaches_input=False)
  if model.items.kind == "mlp":
    layers = (model.items.hidden, model.items.out)
    total += product_flops(work.items, sum(layer.weight.size for layer in layers))
  total += llama_flops(model.backbone.config, work)
  if model.generate is not None:
    total += product_flops(work.targets, sum(D * (D + C) for C in model.generate.sizes))
  return total + (_rank_flops(work, I, D, widths) if ranks else 0)


def _rank_flops(work: Work, I: int, D: int, widths: Sequence[int]) -> int:  # noqa: E741
  """Scores of all items, of which the learned rows and every modality are summands."""
  total = product_flops(work.targets, I * D)
  for V in widths:
    if should_project_catalogue(work.targets, D):
      total += product_flops(I, D * V, reaches_input=False)
    else:
      total += product_flops(work.targets, D * V) + product_flops(
        work.targets, I * V, trained=False
      )
  return total


def sasrec_flops(model: SASRec, work: Work) -> int:
  """A training step of SASRec with the softmax over all items."""
  I, D = model.item_ID.shape  # noqa: E741
  per_block = product_flops(work.tokens, 6 * D * D) + 2 * product_flops(work.pairs, D)
  return len(model.blocks) * per_block + product_flops(work.targets, I * D)


def mm_rqvae_flops(model: MMRQVAE, items: int) -> int:
  """A training step of the semantic IDs on a batch: autoencoders and nearest codes.

  The losses, which grow with the square of the batch, do not count.
  """
  total = 0
  for part in model.by_modality.values():
    first, *rest = (
      layer.kernel.size for mlp in (part.encoder, part.decoder) for layer in mlp.layers
    )
    total += product_flops(items, first, reaches_input=False) + product_flops(items, sum(rest))
    total += product_flops(
      items, part.quantizer.codebook_LCD.size, trained=False, reaches_input=False
    )
  return total
