"""What the plan takes a step to hold, against XLA's own account of the compiled step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.config.schema import default_config
from mmesid_jax.data.packing import Batch, Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.losses.next_item import catalogue_cross_entropy
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.planning.activations import activation_bytes, peak_bytes
from mmesid_jax.training import optimizer
from mmesid_jax.training.step import initial_state, make_step

P, S = 16, 2
LLAMA = LlamaConfig(layers=16, D=96, F=288, N=4, K=2, H=24, attention="xla")
LORA = dataclasses.replace(LLAMA, weights="float32", lora=LoRAConfig(4, 8.0))
DEEP = Layout(rows=8, row_length=96, targets=256, response=S, items=300)
WIDE = Layout(rows=2, row_length=96, targets=512, response=S, items=300)  # the scores take most


def make(c: LlamaConfig, kind: str, items: int):
  """As shapes."""

  def model():
    rngs, widths = nnx.Rngs(0), {"collaborative": 32, "text": 64}
    features = {m: np.zeros((items + 1, V), np.float32) for m, V in widths.items()}
    codes = {m: np.zeros((items + 1, 3), np.int32) for m in widths}
    books = {m: np.zeros((3, 8, c.D), np.float32) for m in widths}
    encoder = ItemEncoder(features, codes, books, D=c.D, kind=kind, rngs=rngs)
    counts_I = np.arange(items + 1)
    gates = FrequencyFusion(counts_I, 2, kind="frequency", temperature=1.0, rngs=rngs)
    return RecommenderModel(encoder, gates, c, P=P, S=S, item_dropout=0.0, rngs=rngs)

  return nnx.eval_shape(model)


def loss(model, batch, key, chunk: int = 0):
  scorer = model.scorer(model.hidden(batch, key))
  return catalogue_cross_entropy(scorer, batch.target_Q, batch.weight_Q, chunk), {}


def held_by_xla(model: RecommenderModel, batch: Batch, loss=loss) -> int:
  """Bytes of the compiled step beside its arguments and results."""
  graph, params, frozen = nnx.split(model, nnx.Param, ...)
  learner = optimizer.make_optimizer(default_config().recommender.optimizer, 100)
  state = jax.eval_shape(lambda params: initial_state(params, learner), params)
  step = make_step(loss, learner, graph, 0)
  return step.lower(state, frozen, batch).compile().memory_analysis().temp_size_in_bytes


CASES = {
  "LoRA": (LORA, "mlp", DEEP, 1500),
  "all trained": (LLAMA, "tied", DEEP, 1500),
  "catalogue": (LORA, "tied", WIDE, 6000),
  "chunks": (LORA, "tied", WIDE, 6001),
}
CHUNKS = {"chunks": 1000}  # the last has a single row more than zeros


@pytest.mark.parametrize("remat", ["none", "products", "layers"])
@pytest.mark.parametrize("case", CASES)
def test_a_fifth_around_what_xla_holds(case, remat):
  """In float32, as XLA's matrix products on CPUs make all else into that first."""
  c, kind, layout, items = CASES[case]
  model = make(dataclasses.replace(c, remat=remat), kind, items)
  batch = Packer(layout).batch()
  gradient = sum(4 * x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  chunked = functools.partial(loss, chunk=CHUNKS.get(case, 0))
  ours = gradient + sum(activation_bytes(chunked, model, batch))
  assert ours == pytest.approx(held_by_xla(model, batch, chunked), rel=0.2)


def test_what_is_kept_is_what_the_policy_of_a_layer_says():
  """Its input in bytes with "layers"; q, k, v, out, gate and up beside it with "products"."""
  batch, X = Packer(DEEP).batch(), P + DEEP.rows * DEEP.row_length
  a_layer = {}
  for remat in ("layers", "products"):
    c = dataclasses.replace(LORA, remat=remat)
    deep, flat = (make(dataclasses.replace(c, layers=n), "tied", 50) for n in (5, 1))
    kept = [activation_bytes(loss, model, batch).kept for model in (deep, flat)]
    a_layer[remat] = (kept[0] - kept[1]) / 4
  width = LLAMA.N * LLAMA.H + 2 * LLAMA.K * LLAMA.H + LLAMA.D + 2 * LLAMA.F
  assert a_layer == {"layers": 4 * X * LLAMA.D, "products": 4 * X * (LLAMA.D + width)}


def held(function, *arguments) -> int:
  return peak_bytes(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_results_are_held_from_their_maker_to_their_last_reader():
  x = jax.ShapeDtypeStruct((8, 8), np.float32)
  size = 4 * 8 * 8

  def chain(x):
    for _ in range(5):
      x = x @ x
    return x.sum()

  def all_at_once(x):
    parts = [x @ x for _ in range(5)]
    return jnp.concatenate(parts).sum()

  assert held(chain, x) == 2 * size  # one being read, one being made
  assert held(all_at_once, x) == 5 * size + 5 * size
  assert held(lambda x: jnp.sin(x + 1).sum(), x) == 0  # in one kernel
  assert held(lambda x: ((y := jnp.sin(x)) @ y).sum(), x) == 2 * size  # a product reads memory
  assert held(lambda x: ((x @ x + 1) @ x[0]).sum(), x) == size + 64  # and two vectors
  assert held(lambda x: jax.jit(chain)(x) * 2, x) == held(chain, x)
  assert held(lambda x: x @ x, x) == 0  # given back


def test_a_called_program_may_return_literals():
  x = jax.ShapeDtypeStruct((8, 8), np.float32)

  def with_literals(x):
    return 0.0, x @ x, 1

  def program(x):
    zero, product, one = jax.checkpoint(with_literals)(x)
    return (product @ product + zero).sum() * one

  assert held(program, x) == 2 * 4 * 8 * 8  # both products
  assert held(with_literals, x) == 0  # given back


def test_what_costs_much_and_has_several_readers_is_held():
  x = jax.ShapeDtypeStruct((8, 8), np.float32)

  def two_readers(function):
    def program(x):
      y = x @ x
      z = function(y)
      return z.sum() + (z * y).max()

    return program

  assert held(two_readers(jnp.exp), x) - held(two_readers(jnp.abs), x) == 4 * 8 * 8


def test_a_loop_holds_what_its_body_does_beside_what_it_stacks():
  x = jax.ShapeDtypeStruct((8, 8), np.float32)

  def body(x, _):
    y = x @ x
    return y @ y @ y, y

  def loop(x):
    return jax.lax.scan(body, x, length=3)[1].sum()

  inside = held(lambda x: body(x, None), x)
  assert inside == 4 * 8 * 8
  assert held(loop, x) == 4 * 8 * 8 * (1 + 3) + inside
