"""Bytes of the evidence by shapes against what a model and a search really hold."""

import gc

import jax
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.data.features import feature_width
from mmesid_jax.data.transitions import Transitions
from mmesid_jax.files.artifact import read_artifact
from mmesid_jax.parallel.mesh import make_mesh, use_mesh_shape
from mmesid_jax.parallel.mesh_axes import MESH_AXES
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.planning.evidence_size import EvidenceSize, evidence_size
from mmesid_jax.planning.planner import NETWORK, Plan
from mmesid_jax.stages.evidence_scores import SettingsRanks
from mmesid_jax.stages.evidence_stages import make_model, width_options

STAGES = {"counts": ("counts",), "content": ("content",), "blend": ("counts", "content", "blend")}


def on_mesh(shape: tuple[int, ...]):
  return use_mesh_shape(dict(zip(MESH_AXES, shape, strict=True)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (2, 2, 2)])
@pytest.mark.parametrize("stage", STAGES)
def test_they_are_those_of_the_model_and_of_its_file(tiny, blended, stage, shape):
  """41 rows divide by no mesh but the first."""
  path = blended / f"{stage}.safetensors"
  tensors, header = read_artifact(path, stage)
  width = feature_width(blended / "synthetic" / "text.npy", 40)
  with on_mesh(shape):
    size = evidence_size(tiny("best", {"stages": STAGES[stage]}), 41, {"text": width})
  model = make_model(tensors, header["settings"])
  with jax.set_mesh(make_mesh(*shape)):
    place_model(model)
  held = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(nnx.state(model))]
  assert size.model == sum(held)
  names = ("amounts", "shares", "weights", "newness")  # how the blend weighs what it holds
  of_blend = sum(tensors[name].nbytes for name in names if name in tensors)
  assert size.artifact == sum(x.nbytes for x in tensors.values()) - of_blend
  assert size.artifact < path.stat().st_size < size.artifact + 16_384  # the header


@pytest.mark.slow
def test_a_search_holds_at_most_three_tables_and_all_directions(tiny):
  """Each of the tables is made while two are kept."""
  rows, V, most = 3000, 300, 0
  config = tiny("best", {"stages": ("content",), "counts.followers": 64})
  zeros = np.zeros((rows, 64), np.float32)

  def held() -> int:
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())

  before = held()
  search = SettingsRanks(
    None,
    (np.ones(rows, np.float32), np.ones(rows, np.float32)),
    lambda window, decay: Transitions(zeros.astype(np.int32), zeros, 1.0),
    lambda modality, width: np.ones((rows, width), np.float32),
    ("text",),
  )
  for width in width_options(V):
    search._directions("text", width)
  for window in range(5):
    kept = held() - before
    most = max(most, kept + sum(x.nbytes for x in search._table(window, 0.5)))
  with on_mesh((1, 8, 1)):
    assert evidence_size(config, rows, {"text": V}).search == most


def test_without_these_stages_there_are_none(tiny):
  assert evidence_size(tiny(), 41, {"text": 8}) == EvidenceSize(0, 0, 0)


@pytest.mark.parametrize(
  ("evidence", "fits"), [((0, 0, 99), True), ((91, 0, 0), False), ((0, 51, 0), False)]
)
def test_a_plan_fits_where_every_stage_does(evidence, fits):
  parts = {**dict.fromkeys(NETWORK, 10), "gradient": 50}
  plan = Plan({}, parts, EvidenceSize(*evidence), None, 1, 100, 1.0)
  assert plan.total == 90 and plan.fits == fits
