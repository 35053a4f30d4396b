"""What the optimizers do to which parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import keystr

from mmesid_jax.config.rules import OPTIMIZERS
from mmesid_jax.config.schema import default_config
from mmesid_jax.models.sasrec import SASRec
from mmesid_jax.stages.recommender_stage import init_recommender
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


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_kind_takes_the_step_of_its_formula(kind, clip):
  config = default_config().recommender.optimizer
  config.update(kind=kind, learning_rate=0.01, weight_decay=0.3, clip=clip, b2=B2)
  config.update(schedule="constant", warmup_steps=0)
  names = ("kernel", "bias", "scale")
  p, g, h = (np.array(x) for x in ([2.0, -3.0], [0.8, -0.7], [-0.1, 0.2]))
  params, first, second = (
    nnx.State({name: nnx.Param(jnp.asarray(x)) for name in names}) for x in (p, g, h)
  )
  ours = optimizer.make_optimizer(config, 10)
  _, state = ours.update(first, ours.init(params), params)
  update, _ = ours.update(second, state, params)
  if clip:  # the norm of the first gradient is above it, that of the second below
    g = g / np.sqrt(len(names) * (g**2).sum())
  direction = DIRECTIONS[kind](g, h)
  np.testing.assert_allclose(update["kernel"][...], -0.01 * (direction + 0.3 * p), rtol=1e-5)
  for name in ("bias", "scale"):  # no decay
    np.testing.assert_allclose(update[name][...], -0.01 * direction, rtol=1e-5)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_later_steps_are_those_of_optax(kind):
  config = default_config().recommender.optimizer
  config.update(kind=kind, clip=0.5, weight_decay=0.1, b2=0.9, warmup_steps=2)
  params = nnx.State({"kernel": nnx.Param(jnp.array([2.0, -3.0, 0.1]))})
  ours = optimizer.make_optimizer(config, 20)
  schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, 2, 20)
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


@pytest.mark.parametrize("warmup_steps", [0, 3, 100])
@pytest.mark.parametrize("steps", [1, 9, 40, 101, 2000])
@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_the_schedule_is_its_formula(kind, steps, warmup_steps):
  config = default_config().recommender.optimizer
  config.update(schedule=kind, learning_rate=0.5, warmup_steps=warmup_steps)
  schedule = optimizer.learning_rate_schedule(config, steps)
  warmup = min(warmup_steps, steps // 10)
  for step in {0, 1, 2, 3, 4, 99, 100, steps // 4, steps // 2, steps - 1} & {*range(steps)}:
    if step < warmup:
      expected = 0.5 * step / warmup
    elif kind == "constant":
      expected = 0.5
    else:
      expected = 0.25 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-4, abs=1e-7), step


@pytest.mark.parametrize("steps", [2, 10, 40, 101, 500])
def test_short_runs_warm_up_for_at_most_a_tenth_of_their_steps(steps):
  config = default_config().recommender.optimizer
  config.update(schedule="cosine", learning_rate=1.0, warmup_steps=100)
  rates = [float(optimizer.learning_rate_schedule(config, steps)(n)) for n in range(steps)]
  highest = int(np.argmax(rates))
  assert highest <= steps / 10 and rates[highest] == 1
  assert rates[highest:] == sorted(rates[highest:], reverse=True)
  assert rates[-1] <= 0.5


def test_all_but_norms_and_biases_decays(tiny):
  table = np.ones((5, 8), np.float32)
  recommender = init_recommender(
    tiny("paper").recommender,
    seed=0,
    features={"text": table},
    codes={"text": np.zeros((5, 2), np.int32)},
    codebooks={"text": np.ones((2, 4, 8), np.float32)},
    counts_I=np.ones(5, np.int64),
  )
  sasrec = SASRec(5, D=8, layers=1, heads=2, positions=4, rate=0.0, rngs=nnx.Rngs(0))
  for model in (recommender, sasrec):
    mask = optimizer.decay_mask(nnx.state(model, nnx.Param))
    names = {keystr(path): decays for path, decays in jax.tree.leaves_with_path(mask)}
    spared = {name for name in names if "norm" in name or "bias" in name}
    assert {name for name, decays in names.items() if not decays} == spared
    assert len(spared) >= 5
