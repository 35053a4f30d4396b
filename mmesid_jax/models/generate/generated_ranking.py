"""Ranks items by the semantic IDs that a beam search generates."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.generate.beam_search import Decoded, beam_search
from mmesid_jax.models.generate.decoder import read_histories
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.sharding import constrain
from mmesid_jax.parallel.variables import Frozen
from mmesid_jax.quantize.id_trie import IdTrie, build_trie


class GeneratedRanking(nnx.Module):
  """The scores of a model are log p(ID) of the items that it generates, and -inf of all others.

  Each user has two searches, of `beams` IDs each: with the items of the history, and without.
  """

  def __init__(self, model: RecommenderModel, beams: int):
    self.model, self.beams = model, beams
    self.num_items = model.num_items
    whole_IK = jax.jit(lambda x_IK: constrain(x_IK, None, None))(model.generate.code_IK[...])
    trie = build_trie(jax.device_get(whole_IK)[: model.num_items + 1])
    arrays, self._tree = jax.tree.flatten(trie)
    self.trie = nnx.Dict({f"array_{n}": Frozen(jnp.asarray(x)) for n, x in enumerate(arrays)})

  def catalogue(self) -> IdTrie:
    """The part of `score_batch` that is equal for all batches."""
    return jax.tree.unflatten(self._tree, [x[...] for x in self.trie.values()])

  sources = ("generated",)  # the one summand of a score, as reasons show it

  def hidden(self, batch: Batch) -> jax.Array:
    """What is computed once for the batch, here the scores, [Q, I]."""
    return self.score_batch(batch, self.catalogue())

  def score_states(self, score_QI: jax.Array, batch: Batch, catalogue: IdTrie) -> jax.Array:
    """The scores that `hidden` returned."""
    return score_QI

  def contributions(self, score_QI: jax.Array, batch: Batch, item_QA: jax.Array) -> jax.Array:
    """Summands [Q, A, 1] of the scores of A items."""
    return jnp.take_along_axis(score_QI, item_QA, axis=1)[..., None]

  def score_batch(self, batch: Batch, catalogue: IdTrie) -> jax.Array:
    """Scores [Q, I] of all items for the batch's targets."""
    step, state = read_histories(self.model, batch)
    both = [
      beam_search(catalogue, step, state, self.beams, left_out_QX)
      for left_out_QX in (None, batch.history_QX)
    ]
    rows = len(self.model.generate.code_IK[...])
    return _scores(both, rows)


def _scores(decoded: list[Decoded], rows: int) -> jax.Array:
  """Scores [Q, rows] of what several searches found, column i = item i; -inf for the rest."""
  Q = len(decoded[0].item_QB)
  score_QI = jnp.full((Q, rows), -jnp.inf)
  for found in decoded:
    score_QI = score_QI.at[jnp.arange(Q)[:, None], found.item_QB].max(found.score_QB)
  return score_QI
