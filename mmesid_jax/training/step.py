"""The compiled training step: gradient as a sum over targets, update, and several steps at once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mmesid_jax.parallel import sharding

# loss(model, batch, key) -> (sum over what is learned from, its weight), scalars to be logged
Loss = Callable[[nnx.Module, Any, jax.Array], tuple[tuple[jax.Array, jax.Array], dict]]


def initial_state(params: nnx.State, optimizer: optax.GradientTransformation) -> dict[str, Any]:
  """What a step reads and gives back: {"params", "optimizer", "step"}."""
  step = sharding.put(np.int32(0), ()) if sharding.partitioned() else jnp.zeros((), jnp.int32)
  initialise = jax.jit(optimizer.init, out_shardings=_beside(params, optimizer))
  return {"params": params, "optimizer": initialise(params), "step": step}


def initial_shapes(params: nnx.State, optimizer: optax.GradientTransformation) -> dict[str, Any]:
  """`initial_state` of parameters that are shapes, as `state.place` leaves them."""
  memory = jax.eval_shape(optimizer.init, params)
  if where := _beside(params, optimizer):
    memory = jax.tree.map(_at, memory, where)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  return {"params": params, "optimizer": memory, "step": sharding.put(step, ())}


def _at(x, where) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _beside(params: nnx.State, optimizer: optax.GradientTransformation):
  """Shardings of the optimizer's memory: what it keeps of a parameter, under the parameter's own
  path, lies where that does. None without a mesh."""
  if not sharding.partitioned():
    return None
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  places = {path: leaf.sharding for path, leaf in leaves}

  def place(path, leaf):
    ends = (path[start:] for start in range(len(path)))
    return next((places[end] for end in ends if end in places), sharding.sharding(()))

  return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))


def first_key(seed: int) -> jax.Array:
  """The key of a run. Accelerators draw bits with XLA's own generator (Philox on GPUs): jax's
  default takes several times as many operations, for LoRA's dropout in an 8B model a tenth of the
  step by count (benchmarks/roofline.py)."""
  return jax.random.key(seed, impl="threefry2x32" if sharding.platform() == "cpu" else "rbg")


def make_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  graph: nnx.GraphDef,
  seed: int,
  *,
  microbatches: int = 1,
  where=None,
):
  """The jitted step(state, frozen, batch) -> (state, metrics); state is donated, and the new one
  lies where it lay.

  The loss that is minimised is sum / weight. microbatches > 1: every leaf of `batch` has them on
  its first axis; sums, weights and gradients are added up before the division, so a target counts
  the same wherever it stands. The key of a step is the seed folded with the step's number, and then
  with the microbatch's, so a resumed run draws what an uninterrupted one would have. where:
  shardings of the state, None = a single device.
  """

  def gradient(params, frozen, batch, key):
    def total(params):
      (total, weight), extra = loss(nnx.merge(graph, params, frozen), batch, key)
      return total, (weight, extra)

    (total, (weight, extra)), slope = jax.value_and_grad(total, has_aux=True)(params)
    return {"total": total, "weight": jnp.asarray(weight), "slope": slope, "extra": extra}

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, frozen, batch):
    key = jax.random.fold_in(first_key(seed), state["step"])
    if microbatches == 1:
      found = gradient(state["params"], frozen, batch, key)
    else:

      def add(found, number_and_batch):
        number, batch = number_and_batch
        more = gradient(state["params"], frozen, batch, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, found, more), None

      first = jax.tree.map(lambda x: x[0], batch)
      empty = jax.eval_shape(gradient, state["params"], frozen, first, key)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)
      found, _ = jax.lax.scan(add, zeros, (jnp.arange(microbatches), batch))
      found["extra"] = jax.tree.map(lambda x: x / microbatches, found["extra"])
    weight = jnp.maximum(found["weight"], 1)
    slope = jax.tree.map(lambda x: x / weight, found["slope"])
    update, memory = optimizer.update(slope, state["optimizer"], state["params"])
    metrics = {
      "loss": found["total"] / weight,
      "gradient_norm": optax.tree.norm(slope),
      **found["extra"],
    }
    new = {
      "params": optax.apply_updates(state["params"], update),
      "optimizer": memory,
      "step": state["step"] + 1,
    }
    return (new if where is None else jax.lax.with_sharding_constraint(new, where)), metrics

  return step


def several(step, at_once: int):
  """The jitted run(state, frozen, batches, count) -> (state, metrics): so many of at most `at_once`
  steps in one call to the device.

  Leaves of `batches` and of metrics have `at_once` places on their first axis; those from `count`
  on are not used. count is data, so that a shorter run before a checkpoint compiles nothing anew.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def run(state, frozen, batches, count):
    def one(i, carry):
      state, metrics = carry
      state, found = step(state, frozen, jax.tree.map(lambda x: x[i], batches))
      return state, jax.tree.map(lambda all, x: all.at[i].set(x), metrics, found)

    _, shapes = jax.eval_shape(step, state, frozen, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda x: jnp.zeros((at_once, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, count, one, (state, zeros))

  return run
