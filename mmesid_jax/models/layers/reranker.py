"""A small network that scores the best candidates again, from what every source says of them.

score' = scale * score + linear . x + output . gelu(hidden x + bias), where x are the features of a
candidate, less their mean and times a factor that gives them deviation 1, or 0. It can say what a
sum cannot, such as that similar content counts for more where an item is rare. Source: the idea of
MME-SID's frequency-aware fusion (section 3.4), with more that is known of user and item.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.models.layers.linear import gelu
from mmesid_jax.parallel.variables import Frozen


class RerankerParams(NamedTuple):
  """Arrays of a reranker, float32; axes before those in the names number several rerankers."""

  mean_F: jax.Array
  factor_F: jax.Array
  scale: jax.Array
  linear_F: jax.Array
  hidden_FH: jax.Array
  bias_H: jax.Array
  output_H: jax.Array


def rerank(params: RerankerParams, score_QK: jax.Array, feature_QKF: jax.Array) -> jax.Array:
  """New scores [Q, K] of K candidates, from their scores and features."""
  x_QKF = (feature_QKF - params.mean_F) * params.factor_F
  hidden_QKH = gelu(x_QKF @ params.hidden_FH + params.bias_H)
  return params.scale * score_QK + x_QKF @ params.linear_F + hidden_QKH @ params.output_H


def average(members: RerankerParams) -> RerankerParams:
  """One reranker that gives the mean of the scores of M, which have an axis M before the others.

  They must have the same mean and factor of features.
  """
  M, F, _ = members.hidden_FH.shape
  return RerankerParams(
    mean_F=members.mean_F[0],
    factor_F=members.factor_F[0],
    scale=members.scale.mean(0),
    linear_F=members.linear_F.mean(0),
    hidden_FH=members.hidden_FH.swapaxes(0, 1).reshape(F, -1),
    bias_H=members.bias_H.reshape(-1),
    output_H=members.output_H.reshape(-1) / M,
  )


class Reranker(nnx.Module):
  """`rerank` as a part of a model."""

  def __init__(self, params: RerankerParams):
    for name, x in params._asdict().items():
      setattr(self, name, Frozen(jnp.asarray(x, jnp.float32)))

  def __call__(self, score_QK: jax.Array, feature_QKF: jax.Array) -> jax.Array:
    """As `rerank`."""
    params = RerankerParams(*(getattr(self, name)[...] for name in RerankerParams._fields))
    return rerank(params, score_QK, feature_QKF)
