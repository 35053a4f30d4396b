"""The step compiled for TPUs that are not there: that it is the step of training, and that libtpu
takes it."""

import importlib.util

import jax
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.dataset import popularity, read_dataset
from mmesid_jax.data.packing import Packer
from mmesid_jax.data.synthetic import write_synthetic
from mmesid_jax.errors import UserError
from mmesid_jax.parallel.mesh import make_mesh
from mmesid_jax.parallel.mesh_axes import MESH_AXES
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.parallel.sharding import device_put_batch, shardings_of
from mmesid_jax.planning import tpu_compiler
from mmesid_jax.stages import recommender_stage
from mmesid_jax.training import optimizer
from mmesid_jax.training.step import initial_state, make_step

WIDTHS = {"collaborative": 8, "text": 8}
HEADS = {  # wide enough for the TPU's kernel
  **{"heads": 2, "kv_heads": 2, "head_width": 128, "width": 128, "mlp_width": 256},
  **{"prompt.length": 5, "prompt.response": 2, "backbone.compute": "bfloat16"},
}
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the compiler for TPUs"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  folder = tmp_path_factory.mktemp("synthetic")
  write_synthetic(folder, users=60, items=40, clusters=4, seed=0)
  return read_dataset(folder)


def shaped(*shape: int) -> dict[str, int]:
  return dict(zip(MESH_AXES, shape, strict=True))


@pytest.mark.parametrize(("shape", "microbatches"), [((2, 2, 1), 2), ((1, 4, 2), 1)])
def test_it_is_the_step_that_training_has(tiny, dataset, shape, microbatches):
  """To the letter, with shapes in place of arrays; 41 rows of tables divide by no mesh."""
  changes = {"heads": 2, "kv_heads": 2, "microbatches": microbatches}
  config = tiny("best", {f"recommender.{key}": value for key, value in changes.items()})
  c, q = config.recommender, config.semantic_ids.quantizer
  items = dataset.num_items + 1
  model = recommender_stage.init_recommender(
    c,
    config.seed,
    features={m: np.zeros((items, V), np.float32) for m, V in WIDTHS.items()},
    codes={m: np.zeros((items, q.levels), np.int32) for m in WIDTHS},
    codebooks={m: np.zeros((q.levels, q.codes, c.width), np.float32) for m in WIDTHS},
    counts_I=popularity(dataset),
  )
  with jax.set_mesh(make_mesh(*shape)):
    layout = recommender_stage.make_batches(config, dataset)[0].layout
    found = tpu_compiler.lower_step(config, dataset, WIDTHS, layout).as_text()
    place_model(model)
    graph, params, frozen = nnx.split(model, nnx.Param, ...)
    learner = optimizer.make_optimizer(c.optimizer, 2)
    state = initial_state(params, learner)
    loss = recommender_stage.recommender_loss(c, popularity(dataset))
    options = {"microbatches": microbatches, "state_shardings": shardings_of(state)}
    step = make_step(loss, learner, graph, config.seed, **options)
    batch = Packer(layout).batch()
    if microbatches > 1:
      batch = jax.tree.map(lambda x: np.stack([x] * microbatches), batch)
    assert found == step.lower(state, frozen, device_put_batch(batch)).as_text()


def test_topologies_by_name():
  names = {("v5e", 1): "2x2", ("v5e", 8): "4x2", ("v5e", 16): "4x4", ("v5e", 256): "16x16"}
  names |= {("v5p", 4): "2x2x1", ("v5p", 8): "2x2x2", ("v5p", 64): "4x4x4", ("v4", 9): "4x2x2"}
  for (kind, devices), name in names.items():
    assert tpu_compiler.smallest_topology(kind, devices) == f"{kind}:{name}"


def test_what_cannot_be_compiled_for_is_refused(monkeypatch):
  with pytest.raises(UserError, match="h200 is no TPU; known: v4, v5e, v5p, v6e"):
    tpu_compiler.check_compiler("h200")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'mmesid_jax\[tpu\]'"):
    tpu_compiler.check_compiler("v5e")


@needs_libtpu
@pytest.mark.parametrize(("head_width", "calls"), [(128, True), (64, False)])
def test_the_kernel_of_tpus_is_in_it(tiny, dataset, head_width, calls):
  """Though a CPU compiles: it goes by the devices of the mesh."""
  changes = HEADS | {"head_width": head_width}
  config = tiny("best", {f"recommender.{key}": value for key, value in changes.items()})
  with jax.set_mesh(tpu_compiler.make_tpu_mesh("v5e", shaped(1, 2, 2))):
    layout = recommender_stage.make_batches(config, dataset)[0].layout
    program = tpu_compiler.lower_step(config, dataset, WIDTHS, layout).as_text()
  assert ("tpu_custom_call" in program) == calls
  assert "rng_bit_generator" in program  # what TPUs draw with


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v5e", "v5p"])
def test_libtpu_compiles_it_for_a_mesh(tiny, dataset, kind):
  config = tiny("best", {f"recommender.{key}": value for key, value in HEADS.items()})
  # as users have it: with bfloat16 the kernel does not compile at the tests' highest precision
  with (
    jax.set_mesh(tpu_compiler.make_tpu_mesh(kind, shaped(1, 2, 2))),
    jax.default_matmul_precision("default"),
  ):
    layout = recommender_stage.make_batches(config, dataset)[0].layout
    found = tpu_compiler.compile_step(config, dataset, WIDTHS, layout)
  assert found.attention == "splash" and not found.refusal
  assert found.bytes["arguments"] > 0 and found.bytes["program"] > 0


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_told_by_the_compiler(tiny, dataset):
  config = tiny("best", {"recommender.rows": 2**17, "recommender.row_length": 128})
  with jax.set_mesh(tpu_compiler.make_tpu_mesh("v5e", shaped(1, 1, 1))):
    layout = recommender_stage.batch_layout(config.recommender)
    found = tpu_compiler.compile_step(config, dataset, WIDTHS, layout)
  assert not found.bytes and "exceeds available HBM (15.75G)" in found.refusal
