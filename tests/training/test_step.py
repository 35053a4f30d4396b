"""Microbatches add up to the whole batch; several steps in one call are those steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmesid_jax.training.step import initial_state, make_multi_step, make_step


class Line(nnx.Module):
  def __init__(self):
    self.weight = nnx.Param(jnp.array([0.5, -1.0, 2.0]))


def loss(model, batch, key):
  """Targets weigh differently, so a mean of means would be another number; noise comes from the
  key."""
  x, y, weight = batch
  error = (x @ model.weight[...] - y) ** 2
  noise = jax.random.normal(key, ()) if key is not None else 0.0
  return ((weight * error).sum(), weight.sum()), {"noise": jnp.asarray(noise)}


def deterministic(model, batch, key):
  return loss(model, batch, None)


def batches(count: int, rows: int = 8):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(count, rows, 3)), rng.normal(size=(count, rows))
  return tuple(np.float32(a) for a in (x, y, rng.integers(0, 3, (count, rows))))


def prepared(function=loss, **options):
  graph, params, frozen = nnx.split(Line(), nnx.Param, ...)
  optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))
  return (
    make_step(function, optimizer, graph, seed=3, **options),
    initial_state(params, optimizer),
    frozen,
  )


def weight(state) -> np.ndarray:
  (leaf,) = jax.tree.leaves(state["params"])
  return np.asarray(leaf)


def test_microbatches_are_one_batch():
  stacked = batches(4)
  step, state, frozen = prepared(deterministic, microbatches=4)
  ours, metrics = step(state, frozen, stacked)
  step, state, frozen = prepared(deterministic)
  whole, expected = step(state, frozen, tuple(a.reshape(-1, *a.shape[2:]) for a in stacked))
  np.testing.assert_allclose(weight(ours), weight(whole), rtol=1e-5)
  for name in ("loss", "gradient_norm"):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_loss_and_gradient_are_of_the_sum_over_the_weight(microbatches):
  x, y, w = (a.reshape(-1, *a.shape[2:]).astype(np.float64) for a in batches(4))
  error = x @ [0.5, -1.0, 2.0] - y
  gradient = 2 * (w * error) @ x / w.sum()
  step, state, frozen = prepared(deterministic, microbatches=microbatches)
  given = batches(4) if microbatches > 1 else tuple(np.float32(a) for a in (x, y, w))
  _, metrics = step(state, frozen, given)
  np.testing.assert_allclose(metrics["loss"], (w * error**2).sum() / w.sum(), rtol=1e-5)
  np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)


def test_every_microbatch_has_a_key_of_its_own():
  def draw(model, batch, key):
    total, _ = loss(model, batch, key)
    return total, {"noise": jax.random.normal(key, ()) ** 2}

  _, metrics = (lambda step, *rest: step(*rest, batches(2)))(*prepared(draw, microbatches=2))
  key = jax.random.fold_in(jax.random.key(3), 0)
  expected = [jax.random.normal(jax.random.fold_in(key, i), ()) ** 2 for i in range(2)]
  np.testing.assert_allclose(metrics["noise"], np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("counts", [(3, 3), (2, 1, 3)])
def test_several_steps_at_once_are_those_steps(counts):
  stacked = batches(sum(counts))
  step, state, frozen = prepared()
  losses = []
  for i in range(sum(counts)):
    state, metrics = step(state, frozen, tuple(a[i] for a in stacked))
    losses.append(metrics["loss"])

  one, ours, frozen = prepared()
  run, done, found = make_multi_step(one, 3), 0, []
  for count in counts:
    places = np.minimum(np.arange(done, done + 3), sum(counts) - 1)  # what is unused is repeated
    ours, metrics = run(ours, frozen, tuple(a[places] for a in stacked), count)
    found += np.asarray(metrics["loss"])[:count].tolist()
    done += count
  assert int(ours["step"]) == sum(counts)
  np.testing.assert_allclose(found, losses, rtol=1e-5)
  np.testing.assert_allclose(weight(ours), weight(state), rtol=1e-5)
  assert run._cache_size() == 1  # a shorter run compiles nothing


def test_a_batch_without_targets_moves_nothing_by_its_gradient():
  x, y, _ = batches(1)
  step, state, frozen = prepared(deterministic)
  _, metrics = step(state, frozen, (x[0], y[0], np.zeros(8, np.float32)))
  assert metrics["loss"] == 0 and metrics["gradient_norm"] == 0
