"""Turns a packed Batch into what models need: an attention mask, and the states that targets read.

Models process the rows in one stream, or in several groups when a mesh divides the batch axis.
Every stream begins with the prompt: J = P + R/G T tokens, in the shape [G, J, D].
"""

import jax
import jax.numpy as jnp

from mmesid_jax.data.packing import Batch
from mmesid_jax.parallel.sharding import lookup_rows, shard_count


def visibility_mask(batch: Batch, prompt: int = 0) -> jax.Array:
  """Bool mask [R, T, P + T], True where the query (axis 1) sees the key (axis 2).

  Keys are the prompt's tokens, then the row's. A token sees the whole prompt, its own user's trunk
  up to its horizon, and its own branch up to itself. Padding sees the prompt only, and no token
  sees padding.
  """

  def as_query(x_RT):
    return x_RT[:, :, None]

  def as_key(x_RT):
    return x_RT[:, None, :]

  segment_RT, branch_RT, response_RT = batch.segment_RT, batch.branch_RT, batch.response_RT
  same_user_RTT = (as_query(segment_RT) == as_key(segment_RT)) & (as_query(segment_RT) > 0)
  before_horizon_RTT = as_key(batch.position_RT) < as_query(batch.horizon_RT)
  in_trunk_RTT = (as_key(branch_RT) == 0) & before_horizon_RTT
  same_branch_RTT = (as_query(branch_RT) == as_key(branch_RT)) & (as_key(branch_RT) > 0)
  in_branch_RTT = same_branch_RTT & (as_key(response_RT) <= as_query(response_RT))
  row_RTT = same_user_RTT & (in_trunk_RTT | in_branch_RTT)
  return jnp.concatenate([jnp.ones((*row_RTT.shape[:2], prompt), bool), row_RTT], axis=2)


def window_mask(position_RT: jax.Array, prompt: int, window: int) -> jax.Array:
  """Bool mask [R, T, P + T], True where the query is fewer than `window` positions after the key.

  To be combined with a `visibility_mask`. Positions are those of a target alone: `prompt` tokens,
  then the items before it, wherever the row holds them; so a window of 1 is the token itself.
  """
  prompt_RP = jnp.broadcast_to(jnp.arange(-prompt, 0), (len(position_RT), prompt))
  position_RY = jnp.concatenate([prompt_RP, position_RT], axis=1)
  return position_RT[:, :, None] - position_RY[:, None, :] < window


def last_read(batch: Batch, prompt: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The tokens that a target's next one would see: the row [Q], bool [Q, P + T], and the positions
  of these tokens, int32 [Q, P + T].

  They are the tokens that the one at `read_Q` sees, with itself; at the end of the prompt, the
  prompt alone.
  """
  T = batch.slot_RT.shape[1]
  row_Q, place_Q = jnp.divmod(jnp.maximum(batch.read_Q - 1, 0), T)
  mask_QY = visibility_mask(batch, prompt)[row_Q, place_Q]
  in_prompt_Y = jnp.arange(prompt + T) < prompt
  mask_QY = jnp.where(batch.read_Q[:, None] > 0, mask_QY, in_prompt_Y)
  prompt_QP = jnp.broadcast_to(jnp.arange(-prompt, 0), (len(row_Q), prompt))
  return row_Q, mask_QY, jnp.concatenate([prompt_QP, batch.position_RT[row_Q]], axis=1)


def group_count(rows: int) -> int:
  """Number of groups that the current mesh divides `rows` into; 1 without a mesh, or if uneven."""
  shards = shard_count("batch")
  return shards if rows % shards == 0 else 1


def read_targets(x_GJD: jax.Array, prompt: int, read_Q: jax.Array) -> jax.Array:
  """Returns the hidden states [Q, D] from which the targets are predicted.

  Args:
    x_GJD: states of every group's stream: `prompt` tokens, then the tokens of its rows.
    prompt: number of prompt tokens, P; at least 1.
    read_Q: `Batch.read_Q`: 0 is the end of the prompt, else 1 + flat index into [R, T].
  """
  G, J, D = x_GJD.shape
  token_Q = jnp.maximum(read_Q - 1, 0)
  group_Q, place_Q = token_Q // (J - prompt), prompt + token_Q % (J - prompt)
  row_Q = jnp.where(read_Q == 0, prompt - 1, group_Q * J + place_Q)
  x_ED = x_GJD.reshape(G * J, D)
  return x_ED[row_Q] if G == 1 else lookup_rows(x_ED, row_Q, "batch")
