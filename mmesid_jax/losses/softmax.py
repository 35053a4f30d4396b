"""Losses of next-item prediction over the whole catalogue, and the sampled one that is often
published."""

import jax
import jax.numpy as jnp


def cross_entropy(
  scores_QI: jax.Array, target_Q: jax.Array, weight_Q: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Sum over targets of -log softmax(scores)[target] over items 1..I, and the sum of weights.

  Column 0 is padding and takes no part. float32, no one-hot. Source: MME-SID, recommendation loss.
  """
  scores_QI = scores_QI.astype(jnp.float32).at[:, 0].set(-jnp.inf)
  target_score_Q = jnp.take_along_axis(scores_QI, target_Q[:, None], axis=1)[:, 0]
  loss_Q = jax.nn.logsumexp(scores_QI, axis=1) - target_score_Q
  # An unused place has target 0, whose score is -inf: select, since 0 * inf is NaN.
  return jnp.where(weight_Q > 0, weight_Q * loss_Q, 0).sum(), weight_Q.sum()


def binary_cross_entropy(
  positive_Q: jax.Array, negative_Q: jax.Array, weight_Q: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Sum over targets of -log sigmoid(positive) - log(1 - sigmoid(negative)), and the sum of
  weights.

  Scores of the target and of one sampled negative. Source: SASRec, section III.E.
  """
  loss_Q = jax.nn.softplus(-positive_Q) + jax.nn.softplus(negative_Q)
  return (weight_Q * loss_Q).sum(), weight_Q.sum()
