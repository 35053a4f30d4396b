"""AdamW with warm-up, cosine decay, clipping and weight decay on what is multiplied only; and
plain steps for what is a moving average."""

import jax
import optax
from flax import nnx
from ml_collections import ConfigDict


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
  """Linear warm-up from 0 to config.learning_rate, then cosine ("cosine") or flat ("constant")."""
  warmup = min(config.warmup_steps, steps - 1)
  if config.schedule == "constant" and not warmup:
    return optax.constant_schedule(config.learning_rate)
  if config.schedule == "constant":
    return optax.linear_schedule(0.0, config.learning_rate, warmup)
  return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)


def decayed(params: nnx.State) -> nnx.State:
  """True for weights and tables, False for norms' scales and biases."""

  def rule(path, _):
    return not {getattr(k, "key", None) for k in path} & {"scale", "bias"}

  return jax.tree_util.tree_map_with_path(rule, params)


def adamw(config: ConfigDict, steps: int) -> optax.GradientTransformation:
  """config: learning_rate, schedule, warmup_steps, weight_decay, clip (0 = no clipping), b2."""
  clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
  return optax.chain(
    clip,
    optax.adamw(
      schedule(config, steps), b2=config.b2, weight_decay=config.weight_decay, mask=decayed
    ),
  )


def averaging(
  others: optax.GradientTransformation, name: str, rate: float
) -> optax.GradientTransformation:
  """Plain steps of `rate` for the parameters of that name, `others` for the rest."""

  def labels(params):
    def label(path, _):
      return name if name in {getattr(k, "key", None) for k in path} else "others"

    return jax.tree_util.tree_map_with_path(label, params)

  return optax.multi_transform({name: optax.sgd(rate), "others": others}, labels)
