"""Every stage on meshes of virtual devices: loss, gradients and ranks are those of one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmesid_jax import pipeline
from mmesid_jax.data.batches import PackedBatches
from mmesid_jax.data.dataset import popularity
from mmesid_jax.data.history_pieces import training_pieces
from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.mesh import make_mesh, mesh_shape
from mmesid_jax.parallel.mesh_axes import MESH_AXES
from mmesid_jax.parallel.placement import model_tensors, place_model
from mmesid_jax.parallel.sharding import device_put_batch
from mmesid_jax.serving.recommender import Recommender
from mmesid_jax.stages import collaborative_stage, recommender_stage, semantic_id_stage
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.workdir import open_workdir
from mmesid_jax.training.step import initial_state, make_step

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]  # data, fsdp, tensor
ALL_AXES = [(2, 2, 2)]  # for variants of what is tried on all meshes: compiling takes its time

ITEMS = 500  # tables have 501 rows, or 504 on eight devices: no other array has an axis that long

SIZES = {
  "data.synthetic.num_items": ITEMS,
  "recommender.heads": 4,
  "recommender.kv_heads": 4,
  "recommender.layers": 2,
  "recommender.rows": 8,
  "collaborative.rows": 8,
  "semantic_ids.batch": 32,
  "recommender.prompt.length": 3,
  # masks are drawn for every device's own tokens, so they are others on another mesh
  "recommender.dropout": 0.0,
  "recommender.item_dropout": 0.0,
  "collaborative.dropout": 0.0,
}

VARIANTS = {
  "best": {},
  "paper": {
    "recommender.prompt.response": 2,
    "recommender.targets": 128,
    "recommender.gate_temperature": 1.0,  # else nearly all gradient of the gates is rounding
  },
  "chunked": {"recommender.softmax_chunk": 3},
  "sampled": {"recommender.negatives": 16},
  "as new": {"recommender.as_new": 0.3},
  "both heads": {"recommender.head": "both", "recommender.codes": "codebooks"},
  "projected": {"recommender.width": 128, "recommender.targets": 136},
}


@pytest.fixture(scope="module")
def opened(tiny, tmp_path_factory):
  """opened(variant): a workdir with data, vectors and semantic IDs."""
  made = {}

  def open_variant(variant: str):
    if variant not in made:
      preset = variant if variant == "paper" else "best"
      codes = {"recommender.codes": "none", "stages": ("collaborative",)}
      if variant == "both heads":
        codes = {"stages": ("collaborative", "semantic_ids")}
      config = tiny(preset, {**SIZES, **VARIANTS[variant], **codes})
      path = tmp_path_factory.mktemp(variant)
      config.collaborative.epochs = 1
      pipeline.run_pipeline(config, path)
      made[variant] = open_workdir(config, path)
    return made[variant]

  return open_variant


def recommender_parts(workdir):
  c = workdir.config.recommender
  model = recommender_stage.init_model(workdir)
  batches, _ = recommender_stage.make_batches(workdir.config, workdir.dataset)
  return (
    model,
    recommender_stage.recommender_loss(c, popularity(workdir.dataset)),
    next(iter(batches)),
  )


def collaborative_parts(workdir):
  c, dataset = workdir.config.collaborative, workdir.dataset
  layout = Layout(c.rows, c.row_length, c.targets)
  pieces, _ = training_pieces(dataset, layout, min_history=1)
  batches = PackedBatches(dataset, pieces, layout, seed=0)
  model = collaborative_stage.init_sasrec(c, dataset.num_items, 0)
  return model, collaborative_stage.sasrec_loss(c, dataset.num_items), next(iter(batches))


def semantic_id_parts(workdir):
  c = workdir.config.semantic_ids
  tables = semantic_id_stage.init_tables(c, workdir.features(), code_width=16, seed=0)
  return (
    tables,
    semantic_id_stage.mm_rqvae_loss(c),
    np.random.default_rng(0).permutation(ITEMS)[:32] + 1,
  )


def value_and_gradient(model, loss, batch, mesh):
  """The loss, and {name: gradient} of everything that is trained, computed on the mesh."""
  with jax.set_mesh(mesh):
    place_model(model)
    graph, params, frozen = nnx.split(model, nnx.Param, ...)

    def both(params, frozen, batch):
      def total(params):
        (total, weight), _ = loss(nnx.merge(graph, params, frozen), batch, jax.random.key(0))
        return total / weight

      return jax.value_and_grad(total)(params)

    batch = device_put_batch(batch)
    compiled = jax.jit(both).lower(params, frozen, batch).compile()
    value, gradient = compiled(params, frozen, batch)
    return float(value), model_tensors(nnx.merge(graph, gradient, frozen)), compiled.as_text()


def compare(parts, expected, mesh) -> str:
  """Raises where the mesh gives something else; the compiled program's text."""
  expected_value, expected_gradient, _ = expected
  value, gradient, text = value_and_gradient(*parts, make_mesh(*mesh))
  assert value == pytest.approx(expected_value, rel=1e-5)
  assert gradient.keys() == expected_gradient.keys()
  for name, found in gradient.items():
    scale = np.abs(expected_gradient[name]).max() if found.dtype.kind == "f" else 1
    np.testing.assert_allclose(
      found, expected_gradient[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name
    )
  return text


def check(make, meshes) -> list[str]:
  """On every one of the meshes, of what `make` gives: model, loss and batch."""
  expected = value_and_gradient(*make(), make_mesh())
  return [compare(make(), expected, mesh) for mesh in meshes]


SLOW = ("sampled", "as new", "paper", "projected", "chunked")


@pytest.mark.parametrize(
  "variant",
  [pytest.param(v, marks=[pytest.mark.slow] * (v in SLOW)) for v in VARIANTS],
)
def test_recommender_equals_one_device(opened, variant):
  """And no device ever gathers a table of items, or the scores of all."""
  meshes = MESHES if variant in ("best", "paper") else ALL_AXES
  texts = check(lambda: recommender_parts(opened(variant)), meshes)
  for mesh, text in zip(meshes, texts, strict=True):
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    whole = [shape for shape in gathered if {"501", "502", "504"} & set(shape.split(","))]
    assert not whole, f"{mesh}: {whole}"


@pytest.mark.parametrize("loss, meshes", [("softmax", MESHES), ("bce", ALL_AXES)])
def test_sasrec_equals_one_device(opened, loss, meshes):
  workdir = opened("best")
  workdir.config.collaborative.loss = loss
  check(lambda: collaborative_parts(workdir), meshes)


@pytest.mark.parametrize(
  "choice, meshes", [("mse info_nce average", MESHES), ("mmd mmd gradient", ALL_AXES)]
)
def test_semantic_ids_equal_one_device(opened, choice, meshes):
  """Losses of pairs of items, moving averages and Sinkhorn all see the whole batch."""
  workdir = opened("best")
  c = workdir.config.semantic_ids
  c.reconstruction, c.alignment, c.quantizer.learning = choice.split()
  check(lambda: semantic_id_parts(workdir), meshes)


def test_tables_are_cut_and_come_back_whole(opened):
  model, _, _ = recommender_parts(opened("best"))
  before = model_tensors(model)
  with jax.set_mesh(make_mesh(2, 2, 2)):
    place_model(model)
    shard = model.items.identity_ID[...].addressable_shards[0].data
  assert shard.shape == (504 // 4, 8)
  after = model_tensors(model)
  assert before.keys() == after.keys()
  assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_a_step_keeps_everything_where_it_lies_and_compiles_once(opened):
  """AdamW's memory beside its parameters, before a step and behind it."""
  model, loss, batch = recommender_parts(opened("best"))
  with jax.set_mesh(make_mesh(2, 2, 2)):
    place_model(model)
    graph, params, frozen = nnx.split(model, nnx.Param, ...)
    adam = optax.adam(1e-3)
    state = initial_state(params, adam)
    places = sharding.shardings_of(state)
    step = make_step(loss, adam, graph, seed=0, state_shardings=places)
    for _ in range(2):
      state, _ = step(state, frozen, device_put_batch(batch))
    identity = next(x for x in jax.tree.leaves(state["optimizer"]) if x.shape == (504, 8))
  assert identity.addressable_shards[0].data.shape == (504 // 4, 8)
  same = jax.tree.map(lambda x, to: x.sharding.is_equivalent_to(to, x.ndim), state, places)
  assert all(jax.tree.leaves(same))
  assert step._cache_size() == 1


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 2, 4)])
def test_ranks_and_recommendations_are_those_of_one_device(opened, mesh):
  workdir = opened("best")
  model, _, _ = recommender_parts(workdir)
  layout = evaluation_layout(recommender_stage.batch_layout(workdir.config.recommender), 32)
  histories = [[3, 499, 500], [], [7, 8]]

  def found(on):
    copy = nnx.clone(model)
    with jax.set_mesh(on):
      answers = Recommender(copy, workdir).recommend(histories, top_k=80)
      return Evaluator(workdir.dataset, layout, "test").model_ranks(copy), answers

  ranks, answers = found(make_mesh(*mesh))
  expected_ranks, expected = found(make_mesh())
  for protocol, rank_U in expected_ranks.items():
    # scores that differ in their last digit may change places
    assert np.mean(ranks[protocol] != rank_U) < 0.02
  for ours, theirs in zip(answers, expected, strict=True):
    assert [r.item for r in ours] == [r.item for r in theirs]
    np.testing.assert_allclose([r.score for r in ours], [r.score for r in theirs], rtol=1e-4)


@pytest.mark.parametrize(
  "asked, devices, message",
  [
    ((-1, -1, 1), 8, "one axis only"),
    ((3, -1, 1), 8, "a multiple of 3 devices, there are 8"),
    ((1, 16, 1), 8, "takes 16 devices, there are 8"),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(asked, devices, message):
  with pytest.raises(UserError, match=message):
    mesh_shape(dict(zip(MESH_AXES, asked, strict=True)), devices)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"recommender.rows": 6}, r"--config.recommender.rows=6 .*mesh.data \* mesh.fsdp = 4; 4 would"),
    ({"collaborative.rows": 2}, r"--config.collaborative.rows=2 .*; 4 would"),
    ({"semantic_ids.batch": 30}, r"semantic_ids.batch.*=30 .*; 28 would"),
    ({"evaluation.targets": 33}, r"--config.evaluation.targets=33 .*mesh.data = 2; 32 would"),
  ],
)
def test_sizes_that_the_mesh_does_not_divide_are_refused_first(tiny, tmp_path, changes, message):
  config = tiny(changes={"mesh.data": 2, "mesh.fsdp": 2, **changes})
  with pytest.raises(UserError, match=message):
    pipeline.run_pipeline(config, tmp_path)
  assert not list(tmp_path.glob("*.safetensors"))


def test_a_batch_is_divided_by_rows_where_they_divide():
  R, T = 8, 4
  zeros = Packer(Layout(rows=R, row_length=T, targets=6)).batch()
  with jax.set_mesh(make_mesh(2, 2, 1)):
    batch = device_put_batch(zeros)
    uneven = device_put_batch(zeros._replace(segment_RT=zeros.segment_RT[:6]))
    stacked = device_put_batch(jax.tree.map(lambda x: np.stack([x, x]), zeros))
  assert {x.data.shape for x in batch.segment_RT.addressable_shards} == {(R // 4, T)}
  assert {x.data.shape for x in stacked.segment_RT.addressable_shards} == {(2, R // 4, T)}
  assert {x.data.shape for x in uneven.segment_RT.addressable_shards} == {(6, T)}
  assert {x.data.shape for x in batch.target_Q.addressable_shards} == {(6,)}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("rows, columns", [(8, 24), (6, 24), (8, 21)])  # (6, ...), (..., 21): whole
def test_columns_are_gathered_from_where_they_are(mesh, rows, columns):
  """With their gradient; what is not gathered may be anything."""
  rng = np.random.default_rng(0)
  x_QI = rng.normal(size=(rows, columns)).astype(np.float32)
  index_QA = rng.integers(0, columns, (rows, 5))
  index_QA[:, 0], index_QA[:, 1] = 0, columns - 1
  factor_QA = rng.normal(size=index_QA.shape).astype(np.float32)
  expected_QI = np.zeros_like(x_QI)
  np.add.at(expected_QI, (np.arange(rows)[:, None], index_QA), factor_QA)
  x_QI[expected_QI == 0] = np.nan

  def total(x_QI):
    found_QA = sharding.gather_columns(sharding.constrain(x_QI, *axes), index_QA)
    return (factor_QA * found_QA).sum(), found_QA

  axes = ("targets" if rows == 8 else None, "items" if columns == 24 else None)
  with jax.set_mesh(make_mesh(*mesh)):
    compiled = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(x_QI).compile()
    (_, found_QA), gradient_QI = compiled(x_QI)
    picked_Q = jax.jit(sharding.pick_columns)(x_QI, jnp.asarray(index_QA[:, 2]))
  np.testing.assert_array_equal(found_QA, np.take_along_axis(x_QI, index_QA, 1))
  np.testing.assert_array_equal(picked_Q, found_QA[:, 2])
  np.testing.assert_allclose(gradient_QI, expected_QI, rtol=1e-6)
  if columns == 24:
    assert f"f32[{rows},{columns}]" not in " ".join(
      line for line in compiled.as_text().splitlines() if "all-gather" in line
    )
