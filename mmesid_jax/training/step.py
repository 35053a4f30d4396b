"""The compiled training step: gradient as a sum over targets, update, several steps in one call."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.mesh import is_partitioned, target_platform

# loss(model, batch, key) -> (sum over what is learned from, its weight), scalars to be logged
Loss = Callable[[nnx.Module, Any, jax.Array], tuple[tuple[jax.Array, jax.Array], dict]]


class BatchSums(NamedTuple):
  """Sums over microbatches: the loss, its weight, its gradient, scalars to be logged."""

  loss: jax.Array
  weight: jax.Array
  grads: nnx.State
  scalars: dict[str, jax.Array]


def initial_state(params: nnx.State, optimizer: optax.GradientTransformation) -> dict[str, Any]:
  """The state that a step reads and returns: {"params", "optimizer", "step"}."""
  if is_partitioned():
    step = sharding.device_put_sharded(np.int32(0), ())
  else:
    step = jnp.zeros((), jnp.int32)
  init_optimizer = jax.jit(optimizer.init, out_shardings=_optimizer_shardings(params, optimizer))
  return {"params": params, "optimizer": init_optimizer(params), "step": step}


def initial_state_shapes(
  params: nnx.State, optimizer: optax.GradientTransformation
) -> dict[str, Any]:
  """`initial_state` of parameters that are shapes, as `place_model` leaves them."""
  optimizer_state = jax.eval_shape(optimizer.init, params)
  if shardings := _optimizer_shardings(params, optimizer):
    optimizer_state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), optimizer_state, shardings
    )
  step = sharding.device_put_sharded(jax.ShapeDtypeStruct((), jnp.int32), ())
  return {"params": params, "optimizer": optimizer_state, "step": step}


def _optimizer_shardings(params: nnx.State, optimizer: optax.GradientTransformation):
  """The sharding of every leaf of the optimizer's state: a leaf at the path of a parameter has that
  parameter's, any other is replicated. None without a mesh."""
  if not is_partitioned():
    return None
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  by_path = {path: leaf.sharding for path, leaf in leaves}

  def sharding_of(path, _):
    ends = (path[start:] for start in range(len(path)))
    return next((by_path[end] for end in ends if end in by_path), sharding.named_sharding(()))

  return jax.tree_util.tree_map_with_path(sharding_of, jax.eval_shape(optimizer.init, params))


def run_key(seed: int) -> jax.Array:
  """The random key of a run.

  Accelerators draw bits with XLA's own generator (Philox on GPUs): jax's default takes several
  times as many operations, for LoRA's dropout in an 8B model a tenth of the step by count
  (benchmarks/roofline.py).
  """
  return jax.random.key(seed, impl="threefry2x32" if target_platform() == "cpu" else "rbg")


def make_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  graph: nnx.GraphDef,
  seed: int,
  *,
  microbatches: int = 1,
  state_shardings=None,
):
  """The jitted step(state, frozen, batch) -> (state, metrics).

  The state is donated, and the new state keeps its sharding. The loss that is minimized is
  sum / weight. The key of a step is the seed folded with the number of the step, and then with that
  of the microbatch, so a resumed run uses the same random numbers as an uninterrupted one.

  Args:
    microbatches: if above 1, every leaf of `batch` has them on its first axis. Losses, weights and
      gradients are added up before the division, so a target counts the same in any of them.
    state_shardings: shardings of the state; None on a single device.
  """

  def loss_and_rest(params, frozen, batch, key):
    (loss_sum, weight), scalars = loss(nnx.merge(graph, params, frozen), batch, key)
    return loss_sum, (jnp.asarray(weight), scalars)

  def batch_sums(params, frozen, batch, key) -> BatchSums:
    value_and_grad = jax.value_and_grad(loss_and_rest, has_aux=True)
    (loss_sum, (weight, scalars)), grads = value_and_grad(params, frozen, batch, key)
    return BatchSums(loss_sum, weight, grads, scalars)

  def microbatch_sums(params, frozen, batches, key) -> BatchSums:
    def add(sums, number_and_batch):
      number, batch = number_and_batch
      of_batch = batch_sums(params, frozen, batch, jax.random.fold_in(key, number))
      return jax.tree.map(jnp.add, sums, of_batch), None

    first = jax.tree.map(lambda x: x[0], batches)
    shapes = jax.eval_shape(batch_sums, params, frozen, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, (jnp.arange(microbatches), batches))
    return sums._replace(scalars=jax.tree.map(lambda x: x / microbatches, sums.scalars))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, frozen, batch):
    key = jax.random.fold_in(run_key(seed), state["step"])
    add_up = batch_sums if microbatches == 1 else microbatch_sums
    sums = add_up(state["params"], frozen, batch, key)
    weight = jnp.maximum(sums.weight, 1)
    grads = jax.tree.map(lambda x: x / weight, sums.grads)
    updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
    new_state = {
      "params": optax.apply_updates(state["params"], updates),
      "optimizer": optimizer_state,
      "step": state["step"] + 1,
    }
    if state_shardings is not None:
      new_state = jax.lax.with_sharding_constraint(new_state, state_shardings)
    gradient_norm = optax.tree.norm(grads)
    return new_state, {"loss": sums.loss / weight, "gradient_norm": gradient_norm, **sums.scalars}

  return step


def make_multi_step(step, at_once: int):
  """The jitted run(state, frozen, batches, count) -> (state, metrics): up to `at_once` steps in one
  call to the device.

  Leaves of `batches` and of the metrics have `at_once` places on their first axis; those from
  `count` on are not used. `count` is traced, so fewer steps before a checkpoint do not recompile.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def run(state, frozen, batches, count):
    def one_step(i, carry):
      state, all_metrics = carry
      state, metrics = step(state, frozen, jax.tree.map(lambda x: x[i], batches))
      return state, jax.tree.map(lambda all_x, x: all_x.at[i].set(x), all_metrics, metrics)

    first = jax.tree.map(lambda x: x[0], batches)
    _, shapes = jax.eval_shape(step, state, frozen, first)
    zeros = jax.tree.map(lambda x: jnp.zeros((at_once, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, count, one_step, (state, zeros))

  return run
