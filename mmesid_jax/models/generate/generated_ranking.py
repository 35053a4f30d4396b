"""Ranks items by the semantic IDs that a beam search generates, alone or beside their scores."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.generate.beam_search import beam_search, best_items
from mmesid_jax.models.generate.decoder import read_histories
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.quantize.id_trie import build_trie


class Read(NamedTuple):
  """A batch that was read and searched."""

  h_QD: jax.Array  # the states that score items
  score_QI: jax.Array  # log p(ID) of the items that are generated, -inf for the others


class GeneratedRanking(nnx.Module):
  """The scores of a model are log p(ID) of the items that it generates, and -inf of all others.

  A search ends with two lists of `beams` items: with those of the history, and without.
  """

  sources: tuple[str, ...] = ("generated",)  # the summands of a score, as reasons show them

  def __init__(self, model: RecommenderModel, beams: int):
    self.model, self.beams = model, beams
    self.num_items = model.num_items

  def replace(self, model: RecommenderModel) -> "GeneratedRanking":
    """The ranking of another model, with as many beams."""
    return type(self)(model, self.beams)

  def restrict_to(self, items: range) -> "GeneratedRanking":
    """The ranking with a search among these items alone. Raises ValueError where none of them has
    codes."""
    restricted = nnx.merge(*nnx.split(self.model))  # shares the arrays
    id_IL = np.asarray(restricted.generate.id_IL[...])
    restricted.generate.set_ids(id_IL, build_trie(id_IL, np.asarray(items)))
    return self.replace(restricted)

  def catalogue(self) -> Any:
    """The part of `score_batch` that is equal for all batches: nothing here."""
    return ()

  def hidden(self, batch: Batch) -> Read:
    """Reads the batch and searches, once for all that follows."""
    h_QD, step, state = read_histories(self.model, batch)
    trie = self.model.generate.trie
    leaves = beam_search(trie, step, state, self.beams)
    Q, rows = len(h_QD), len(trie.path)
    score_QI = jnp.full((Q, rows), -jnp.inf)
    for excluded_QX in (None, batch.history_QX):
      found = best_items(trie, leaves, self.beams, excluded_QX)
      score_QI = score_QI.at[jnp.arange(Q)[:, None], found.item_QA].max(found.score_QA)
    return Read(h_QD, score_QI)

  def score_states(self, read: Read, batch: Batch, catalogue: Any) -> jax.Array:
    """Scores [Q, I] of all items, from hidden(batch)."""
    return read.score_QI

  def contributions(self, read: Read, batch: Batch, item_QA: jax.Array) -> jax.Array:
    """Summands [Q, A, O] of the scores of A items, in the order of `sources`."""
    return jnp.take_along_axis(read.score_QI, item_QA, axis=1)[..., None]

  def score_batch(self, batch: Batch, catalogue: Any) -> jax.Array:
    """Scores [Q, I] of all items for the batch's targets."""
    return self.score_states(self.hidden(batch), batch, catalogue)


class SummedRanking(GeneratedRanking):
  """The sum of both heads: the score of an item, and log p(ID).

  A user's scores are log p(item) and a constant, so the order is that of the product of both
  probabilities. An item that no search finds gets the lowest log p(ID) that the searches found,
  above which it would have been found, too, as far as the beams are wide enough.
  """

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of the summands of a score, as reasons show them."""
    return (*self.model.sources, "generated")

  def catalogue(self) -> jax.Array:
    """The part of `score_batch` that is equal for all batches: vectors of all items, [I, D]."""
    return self.model.item_vectors()

  def hidden(self, batch: Batch) -> Read:
    """Reads the batch and searches; items that are not generated get the lowest score found."""
    read = super().hidden(batch)
    is_found_QI = jnp.isfinite(read.score_QI)
    lowest_Q = jnp.where(is_found_QI, read.score_QI, jnp.inf).min(1)
    return read._replace(score_QI=jnp.where(is_found_QI, read.score_QI, lowest_Q[:, None]))

  def score_states(self, read: Read, batch: Batch, catalogue: jax.Array) -> jax.Array:
    """Scores [Q, I] of all items, from hidden(batch)."""
    return self.model.score_states(read.h_QD, batch, catalogue) + read.score_QI

  def contributions(self, read: Read, batch: Batch, item_QA: jax.Array) -> jax.Array:
    """Summands [Q, A, O] of the scores of A items, in the order of `sources`."""
    ranked_QAO = self.model.contributions(read.h_QD, batch, item_QA)
    return jnp.concatenate([ranked_QAO, super().contributions(read, batch, item_QA)], axis=-1)


# What a head "both" offers beside ranking, by the name that is served.
GENERATED = {"generated": GeneratedRanking, "summed": SummedRanking}
