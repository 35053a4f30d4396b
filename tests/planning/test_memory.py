"""Bytes by shapes against what a model really holds on a mesh of virtual devices."""

import jax
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.parallel.mesh import make_mesh, use_mesh_shape
from mmesid_jax.parallel.mesh_axes import MESH_AXES
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.parallel.sharding import device_put_batch, shardings_of
from mmesid_jax.parallel.variables import Frozen, LoRAParam, Pretrained
from mmesid_jax.planning import memory
from mmesid_jax.stages import recommender_stage
from mmesid_jax.training import optimizer
from mmesid_jax.training.step import initial_state, make_step

ITEMS = 45  # 46 rows: no mesh divides them
WIDTHS = {"collaborative": 8, "text": 6}
MESHES = [(1, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
SIZES = {
  **{"width": 512, "layers": 2, "heads": 8, "kv_heads": 8, "head_width": 64, "mlp_width": 512},
  **{"whiten": 0, "prompt.length": 3, "prompt.response": 2},
}
DEEP = {
  **{"width": 64, "layers": 12, "heads": 4, "kv_heads": 4, "head_width": 16, "mlp_width": 192},
  **{"whiten": 0, "prompt.length": 9, "prompt.response": 2, "dropout": 0.0, "item_dropout": 0.0},
  "backbone.remat": "products",
}
KINDS = {
  "full": {},
  "lora": {"backbone.kind": "lora", "encoder": "mlp", "codes": "frozen"},
  "nf4": {"backbone.kind": "lora", "backbone.weights": "nf4", "microbatches": 2},
  "frozen": {"backbone.kind": "frozen", "backbone.weights": "int8", "codes": "none"},
}


def configured(tiny, kind: str):
  return tiny("best", {f"recommender.{k}": v for k, v in (SIZES | KINDS[kind]).items()})


def really_made(config):
  """The model with arrays."""
  c, rng, q = config.recommender, np.random.default_rng(0), config.semantic_ids.quantizer
  coded = WIDTHS if c.codes != "none" else {}
  return recommender_stage.init_recommender(
    c,
    0,
    features={m: rng.normal(size=(ITEMS + 1, V)).astype(np.float32) for m, V in WIDTHS.items()},
    codes={m: np.zeros((ITEMS + 1, q.levels), np.int32) for m in coded},
    codebooks={m: np.zeros((q.levels, q.codes, c.width), np.float32) for m in coded},
    counts_I=np.ones(ITEMS + 1, int),
  )


def really_held(config, mesh) -> dict[str, int]:
  """Of that model, placed and with its optimizer's memory, on the first device."""
  c, model = config.recommender, really_made(config)
  with jax.set_mesh(mesh):
    place_model(model)
    params = nnx.state(model, nnx.Param)
    state = initial_state(params, optimizer.make_optimizer(c.optimizer, 100))

  def size(tree) -> int:
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

  return {
    "frozen backbone": size(nnx.state(model, Pretrained)),
    "LoRA": size(nnx.state(model, LoRAParam)),
    "other trained parameters": size(nnx.state(model, nnx.All(nnx.Param, nnx.Not(LoRAParam)))),
    "gradient": size(params) * c.microbatches,
    "AdamW's moments": size(state["optimizer"]),
    "tables": size(nnx.state(model, nnx.All(Frozen, nnx.Not(Pretrained)))),
  }


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_that_a_device_holds(tiny, kind, shape):
  config = configured(tiny, kind)
  with use_mesh_shape(dict(zip(MESH_AXES, shape, strict=True))):
    found = memory.bytes_per_device(
      memory.model_shapes(config, ITEMS + 1, WIDTHS), config.recommender
    )
  assert found == really_held(config, make_mesh(*shape))


def test_a_device_of_a_mesh_holds_a_fifth_around_what_xla_says(tiny):
  """Its share of rows, heads, targets and items, and the weights that it gathers."""
  config = tiny("best", {f"recommender.{k}": v for k, v in DEEP.items()})
  c, layout, shape = config.recommender, Layout(32, 96, 256, 2, 900), (2, 2, 2)
  with use_mesh_shape(dict(zip(MESH_AXES, shape, strict=True))):
    shapes = memory.model_shapes(config, ITEMS + 1, WIDTHS)
    ours = memory.bytes_per_device(shapes, c)["gradient"] + memory.gathered_bytes(shapes)
    one = memory.share_of_one_device(ITEMS + 1, layout)
  ours += sum(memory.trace_activations(config, WIDTHS, one))
  with jax.set_mesh(make_mesh(*shape)):
    model = really_made(config)
    place_model(model)
    graph, params, frozen = nnx.split(model, nnx.Param, ...)
    learner = optimizer.make_optimizer(c.optimizer, 100)
    state = initial_state(params, learner)
    loss = recommender_stage.recommender_loss(c, np.ones(ITEMS + 1, int))
    step = make_step(loss, learner, graph, 0, state_shardings=shardings_of(state))
    lowered = step.lower(state, frozen, device_put_batch(Packer(layout).batch()))
  assert ours == pytest.approx(lowered.compile().memory_analysis().temp_size_in_bytes, rel=0.2)


def test_chunks_are_those_of_the_whole_batch_and_catalogue():
  """A device that holds an eighth of the items traces the chunks that training has."""
  layout, rows = Layout(8, 64, 2048), 10**6
  shares = []
  for fsdp in (1, 8):
    with use_mesh_shape({"data": 1, "fsdp": fsdp, "tensor": 1}):
      shares.append(memory.share_of_one_device(rows, layout))
  assert [share.rows for share in shares] == [10**6, 125_000]
  assert [share.chunk for share in shares] == [2**17, 2**17]  # 1 GiB of float32 scores
  assert memory.share_of_one_device(1000, layout).chunk == 0
  assert memory.share_of_one_device(1000, layout, 64).chunk == 64


def test_a_device_has_an_item_where_devices_outnumber_them(tiny):
  config = tiny("best")
  with use_mesh_shape({"data": 1, "fsdp": 8, "tensor": 1}):
    share = memory.share_of_one_device(4, Layout(8, 32, 96))
  assert share.rows == 2 and min(memory.trace_activations(config, WIDTHS, share)) > 0


def test_what_fsdp_cuts_is_whole_a_layer_at_a_time(tiny):
  """And of the encoder, which is all at once, the gradient too, whole before it is cut."""
  config = configured(tiny, "lora")
  for fsdp, encoder, expected in (
    (8, "mlp", 2 * 4 * (4 * 512 * 1024 + 1024 * 512)),
    (8, "tied", 2 * (4 * 512 * 512 + 3 * 512 * 512)),
    (1, "mlp", 0),
  ):
    config.recommender.encoder = encoder
    with use_mesh_shape({"data": 1, "fsdp": fsdp, "tensor": 1}):
      model = memory.model_shapes(config, ITEMS + 1, WIDTHS)
      memory.bytes_per_device(model, config.recommender)
      assert memory.gathered_bytes(model) == expected


def test_a_mesh_that_does_not_divide_is_refused_as_in_training(tiny):
  config = configured(tiny, "full")
  model = memory.model_shapes(config, ITEMS + 1, WIDTHS)
  with (
    use_mesh_shape({"data": 1, "fsdp": 1, "tensor": 16}),
    pytest.raises(UserError, match=r"axis kv_heads=8 does not divide by mesh.tensor = 16"),
  ):
    memory.bytes_per_device(model, config.recommender)
