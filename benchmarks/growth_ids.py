"""Trie and beam search for catalogues of any size, the series `ids` of growth.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.generate.decoder import generate_items
from mmesid_jax.models.generate.head import GenerativeHead
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.quantize.id_trie import IdTrie, build_trie
from mmesid_jax.quantize.item_ids import ItemIds, number_shared_codes

LEVELS, CODES, READ = 4, 256, 1000  # of the IDs; items that histories are drawn from
D, LAYERS, HEAD, HISTORY = 64, 2, 32, 10


class Case(NamedTuple):
  """Contestants for a catalogue."""

  build: Callable[[], Any]
  search: Callable[[int], jax.stages.Compiled]  # beams -> program(model, batch)
  arguments: tuple
  trie: IdTrie


def make_case(items: int) -> Case:
  """Random codes, one history of 10 items, a recommender of width 64 and 2 layers."""
  rng = np.random.default_rng(items)
  ids = number_shared_codes(rng.integers(0, CODES, (items + 1, LEVELS), np.int32), CODES)
  trie = build_trie(ids.id_IL)
  model = recommender(ids, trie, rng)
  (batch,) = batch_sequences([rng.integers(1, READ, HISTORY + 1)], Layout(1, HISTORY, 1), [HISTORY])
  arguments = jax.device_put((nnx.split(model)[1], batch))
  graph = nnx.graphdef(model)

  def search(beams: int) -> jax.stages.Compiled:
    def found(state, batch):
      return generate_items(nnx.merge(graph, state), batch, beams)

    return jax.jit(found).lower(*arguments).compile()

  return Case(lambda: build_trie(ids.id_IL), search, arguments, trie)


def recommender(ids: ItemIds, trie: IdTrie, rng: np.random.Generator) -> RecommenderModel:
  """It reads the first items of the catalogue alone, and may write all of them."""
  rngs, read = nnx.Rngs(0), ids.id_IL[: READ + 1]
  features = {"text": np.zeros((len(read), 1), np.float32)}
  books = {"text": rng.standard_normal((LEVELS, CODES, D), np.float32)}
  items = ItemEncoder(features, {"text": read[:, :LEVELS]}, books, D=D, kind="tied", rngs=rngs)
  gates = FrequencyFusion(np.ones(len(read)), 1, kind="sum", temperature=1.0, rngs=rngs)
  heads = D // HEAD
  llama = LlamaConfig(layers=LAYERS, D=D, F=4 * D, N=heads, K=heads, H=HEAD)
  head = GenerativeHead(ids, trie, ["text"], LEVELS, D, rngs=rngs)
  return RecommenderModel(items, gates, llama, P=1, S=0, item_dropout=0.0, generate=head, rngs=rngs)
