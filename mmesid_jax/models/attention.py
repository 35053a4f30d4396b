"""What a token of a shared-prefix row may see, and attention under that mask."""

import jax
import jax.numpy as jnp

from mmesid_jax.data.packing import Batch


def visible(batch: Batch) -> jax.Array:
  """Mask [R, T, T], True where the query (axis 1) sees the key (axis 2).

  A token sees its own user's trunk up to its horizon, and its own branch up to itself. Padding sees
  nothing and is seen by nobody.
  """

  def query(x_RT):
    return x_RT[:, :, None]

  def key(x_RT):
    return x_RT[:, None, :]

  same_user = (query(batch.segment_RT) == key(batch.segment_RT)) & (query(batch.segment_RT) > 0)
  trunk = (key(batch.branch_RT) == 0) & (key(batch.position_RT) < query(batch.horizon_RT))
  same_branch = (query(batch.branch_RT) == key(batch.branch_RT)) & (key(batch.branch_RT) > 0)
  branch = same_branch & (key(batch.response_RT) <= query(batch.response_RT))
  return same_user & (trunk | branch)


def attention(
  q_RTNH: jax.Array, k_RSKH: jax.Array, v_RSKH: jax.Array, mask_RTS: jax.Array
) -> jax.Array:
  """softmax(q k / sqrt(H)) v under the mask, grouped-query (K divides N); softmax in float32.

  A query that sees nothing gets a mean of v, which no target ever reads.
  """
  return jax.nn.dot_product_attention(q_RTNH, k_RSKH, v_RSKH, mask=mask_RTS[:, None])


def read(prompt_D: jax.Array, x_RTD: jax.Array, read_Q: jax.Array) -> jax.Array:
  """The hidden state [Q, D] at which every target is predicted: the end of the prompt or a
  token."""
  flat_XD = jnp.concatenate([prompt_D[None], x_RTD.reshape(-1, x_RTD.shape[-1])])
  return flat_XD[read_Q]
