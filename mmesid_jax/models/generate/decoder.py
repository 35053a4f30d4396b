"""The recommender as the step of a beam search: one token a beam, after a history read once."""

from typing import Any

import jax
import jax.numpy as jnp

from mmesid_jax.data.packing import Batch
from mmesid_jax.models.generate.beam_search import Decoded, Step, beam_search, exact_scores
from mmesid_jax.models.llama import Prefix
from mmesid_jax.models.packed_rows import last_read, read_targets, visibility_mask
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.quantize.id_trie import IdTrie


def read_histories(model: RecommenderModel, batch: Batch) -> tuple[Step, Any]:
  """Reads the batch once; returns the step of `beam_search` and the state that it begins with.

  The batch has no code tokens: the search writes them. Of all layers, keys and values of the rows
  are held, and those of the beams' own tokens, which are fewer than the levels.
  """
  head, P = model.generate, model.prompt_length
  table_KCD = head.table(model.items)
  x_GJD, seen = model.backbone.prefill(
    model.prompt_PD[...], model.tokens(batch), batch.position_RT, visibility_mask(batch, P)
  )
  h_QD = read_targets(x_GJD, P, batch.read_Q) * model.state_scale
  row_Q, mask_QY, position_QY = last_read(batch, P)
  prefix = Prefix(seen, row_Q, mask_QY, position_QY, P)
  read_position_Q = batch.position_RT.reshape(-1)[jnp.maximum(batch.read_Q - 1, 0)]
  next_Q = jnp.where(batch.read_Q > 0, read_position_Q + 1, 0)
  c = model.backbone.config
  none = jnp.zeros((c.layers, len(next_Q), 1, 0, c.K, c.H), seen[0].dtype)

  def step(level: int, branch, parent_QB, code_QB):
    if level == 0:
      return head.log_probabilities(table_KCD, 0, h_QD)[:, None], branch
    branch = tuple(_of_parents(x, parent_QB) for x in branch)
    x_QBD = head.tokens(table_KCD, level - 1, jnp.maximum(code_QB, 0)) * model.token_scale
    h_QBD, branch = model.backbone.extend(x_QBD, next_Q + level - 1, prefix, branch)
    return head.log_probabilities(table_KCD, level, h_QBD * model.state_scale), branch

  return step, (none, none)


def _of_parents(x_ZQBXKH: jax.Array, parent_QB: jax.Array) -> jax.Array:
  """What the beams that are continued have written, for the beams that continue them."""
  return jax.vmap(lambda x_ZBXKH, parent_B: x_ZBXKH[:, parent_B], (1, 0), 1)(x_ZQBXKH, parent_QB)


def generate_items(
  model: RecommenderModel,
  batch: Batch,
  trie: IdTrie,
  beams: int,
  left_out_QX: jax.Array | None = None,
) -> Decoded:
  """`beam_search` for the batch's targets."""
  return beam_search(trie, *read_histories(model, batch), beams, left_out_QX)


def score_all_items(model: RecommenderModel, batch: Batch, trie: IdTrie) -> jax.Array:
  """`exact_scores` for the batch's targets, [Q, I]."""
  step, state = read_histories(model, batch)
  return exact_scores(trie, step, state, model.num_items + 1)
