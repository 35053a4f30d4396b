"""What the optimizers do to which parameters."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmesid_jax.config.schema import OPTIMIZERS, default_config
from mmesid_jax.training import optimizer


def test_moving_averages_take_plain_steps_beside_adamw():
  """Neither clipping, nor decay, nor Adam's scale touch them; the others never see them."""
  config = default_config().semantic_ids.optimizer
  config.update(clip=0.1, weight_decay=0.5)
  params = nnx.State({"book": nnx.Param(jnp.full(3, 2.0)), "kernel": nnx.Param(jnp.ones(3))})
  gradient = nnx.State({"book": nnx.Param(jnp.full(3, 50.0)), "kernel": nnx.Param(jnp.ones(3))})
  adamw = optimizer.make_optimizer(config, 10)
  both = optimizer.with_moving_averages(adamw, "book", 0.1)
  update, _ = both.update(gradient, both.init(params), params)
  np.testing.assert_allclose(update["book"][...], -5.0, rtol=1e-6)
  alone = nnx.State({"kernel": params["kernel"]})
  expected, _ = adamw.update(nnx.State({"kernel": gradient["kernel"]}), adamw.init(alone), alone)
  np.testing.assert_allclose(update["kernel"][...], expected["kernel"][...], rtol=1e-5)
  assert optax.tree.norm(expected) > 0


# The second step's direction from gradients g, then h, by the optimizers' papers. B1 is optax's.
B1, B2 = 0.9, 0.95


def adam_direction(g, h):
  mean = (B1 * (1 - B1) * g + (1 - B1) * h) / (1 - B1**2)
  square = (B2 * (1 - B2) * g**2 + (1 - B2) * h**2) / (1 - B2**2)
  return mean / (np.sqrt(square) + 1e-8)


def lion_direction(g, h):
  return np.sign(B1 * (1 - B2) * g + (1 - B1) * h)


DIRECTIONS = {"adamw": adam_direction, "lion": lion_direction}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_kind_takes_the_step_of_its_formula(kind):
  config = default_config().recommender.optimizer
  config.update(kind=kind, learning_rate=0.01, weight_decay=0.3, clip=0.0, b2=B2)
  config.update(schedule="constant", warmup_steps=0)
  p, g, h = (np.array(x) for x in ([2.0, -3.0], [0.8, -1.7], [-0.3, -0.4]))
  params, first, second = (
    nnx.State({name: nnx.Param(jnp.asarray(x)) for name in ("kernel", "bias")}) for x in (p, g, h)
  )
  ours = optimizer.make_optimizer(config, 10)
  _, state = ours.update(first, ours.init(params), params)
  update, _ = ours.update(second, state, params)
  direction = DIRECTIONS[kind](g, h)
  np.testing.assert_allclose(update["kernel"][...], -0.01 * (direction + 0.3 * p), rtol=1e-5)
  np.testing.assert_allclose(update["bias"][...], -0.01 * direction, rtol=1e-5)  # no decay


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_later_steps_are_those_of_optax(kind):
  config = default_config().recommender.optimizer
  config.update(kind=kind, clip=0.5, weight_decay=0.1, b2=0.9, warmup_steps=2)
  params = nnx.State({"kernel": nnx.Param(jnp.array([2.0, -3.0, 0.1]))})
  ours = optimizer.make_optimizer(config, 6)
  schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, 2, 6)
  theirs = optax.chain(
    optax.clip_by_global_norm(0.5),
    getattr(optax, kind)(schedule, b2=0.9, weight_decay=0.1, mask=optimizer.decay_mask),
  )
  states = [ours.init(params), theirs.init(params)]
  for n in range(4):
    gradient = nnx.State({"kernel": nnx.Param(jnp.cos(n + params["kernel"][...]))})
    mine, states[0] = ours.update(gradient, states[0], params)
    other, states[1] = theirs.update(gradient, states[1], params)
    np.testing.assert_allclose(mine["kernel"][...], other["kernel"][...], rtol=1e-5)
    params = optax.apply_updates(params, mine)
