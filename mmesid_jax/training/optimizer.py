"""Optimizers of optax, with warm-up, decay, clipping, and weight decay of matrices and tables only.

To add an optimizer, add its optax name to `config.rules.OPTIMIZERS`: that is all, if its function
takes a learning rate, `b2`, `weight_decay` and `mask`.
"""

import jax
import optax
from flax import nnx
from ml_collections import ConfigDict


def learning_rate_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
  """Linear warm-up from 0 to config.learning_rate, then cosine ("cosine") or flat ("constant").

  Warms up for config.warmup_steps, but for at most a tenth of the steps.
  """
  warmup = min(config.warmup_steps, steps // 10)
  if config.schedule == "constant" and not warmup:
    return optax.constant_schedule(config.learning_rate)
  if config.schedule == "constant":
    return optax.linear_schedule(0.0, config.learning_rate, warmup)
  return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)


def decay_mask(params: nnx.State) -> nnx.State:
  """True for weights and tables, False for norms' scales and biases."""

  def rule(path, _):
    return not {getattr(k, "key", None) for k in path} & {"scale", "bias"}

  return jax.tree_util.tree_map_with_path(rule, params)


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
  """The optimizer of a stage, for that many steps; config: the section `optimizer` of the stage."""
  clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
  return optax.chain(
    clip,
    getattr(optax, config.kind)(
      learning_rate_schedule(config, steps),
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=decay_mask,
    ),
  )


def with_moving_averages(
  others: optax.GradientTransformation, name: str, rate: float
) -> optax.GradientTransformation:
  """Plain steps of `rate` for the parameters of that name, `others` for the rest."""

  def labels(params):
    def label(path, _):
      return name if name in {getattr(k, "key", None) for k in path} else "others"

    return jax.tree_util.tree_map_with_path(label, params)

  return optax.multi_transform({name: optax.sgd(rate), "others": others}, labels)
