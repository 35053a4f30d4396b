"""What the optimizers do to which parameters."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmesid_jax.config.schema import default_config
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
  np.testing.assert_allclose(update["book"][...], -5.0)
  alone = nnx.State({"kernel": params["kernel"]})
  expected, _ = adamw.update(nnx.State({"kernel": gradient["kernel"]}), adamw.init(alone), alone)
  np.testing.assert_allclose(update["kernel"][...], expected["kernel"][...])
  assert optax.tree.norm(expected) > 0
