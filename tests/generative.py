"""A small recommender with a generative head, and histories for it."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.generate.head import GenerativeHead
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.quantize.id_trie import build_trie
from mmesid_jax.quantize.item_ids import join_codes, number_shared_codes

ITEMS, D, C = 40, 16, 4


def recommender(S: int, *, levels=3, modalities=("a",), **parts) -> RecommenderModel:
  """Random everything: norms are not 1, and projections not the identity."""
  rng = np.random.default_rng(0)
  features = {m: rng.normal(size=(ITEMS + 1, 5)).astype(np.float32) for m in modalities}
  codes = {m: rng.integers(0, C, (ITEMS + 1, levels)).astype(np.int32) for m in modalities}
  books = {m: rng.normal(size=(levels, C, D)).astype(np.float32) for m in modalities}
  rngs = nnx.Rngs(0)
  items = ItemEncoder(features, codes, books, D=D, kind="tied", rngs=rngs)
  gates = FrequencyFusion(
    np.arange(ITEMS + 1), len(modalities), kind="sum", temperature=1.0, rngs=rngs
  )
  backbone = LlamaConfig(layers=2, D=D, F=24, N=4, K=2, H=6, **parts)
  ids, levels = number_shared_codes(join_codes([*codes.values()]), C), levels * len(modalities)
  head = GenerativeHead(ids, build_trie(ids.id_IL), modalities, levels, D, rngs=rngs)
  model = RecommenderModel(
    items, gates, backbone, P=3, S=S, item_dropout=0.0, token_scale=1.5, state_scale=0.7,
    generate=head, rngs=rngs,
  )  # fmt: skip
  for _, x in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    x.set_value(x[...] + 0.3 * jnp.asarray(rng.normal(size=x.shape), jnp.float32))
  return model


def histories(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(1, ITEMS + 1, n) for n in lengths]
