"""Plans of catalogues that are too large to be made here."""

import numpy as np
import pytest

from mmesid_jax.data.dataset import Dataset
from mmesid_jax.parallel.devices import DEVICES
from mmesid_jax.parallel.mesh_axes import MESH_AXES
from mmesid_jax.planning.planner import Planner

GIB = 2**30


@pytest.mark.parametrize("items", [10**6, 10**7])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1)])
def test_a_catalogue_of_millions_is_scored_in_chunks(tiny, items, shape):
  """A chunk holds 1 GiB of scores, beside tables and learned rows of 40 and 32 bytes an item."""
  sequences = np.random.default_rng(0).integers(1, items + 1, (50, 20))
  offsets = np.arange(0, sequences.size + 1, 20)
  dataset = Dataset(sequences.ravel(), offsets, np.arange(50), items, "", None)
  sizes = {"recommender.rows": 8, "recommender.targets": 1024, "recommender.codes": "none"}
  planner = Planner(tiny("best", sizes), DEVICES["h200"], dataset, {"text": 8}, 0.4, None)
  plan = planner.plan(dict(zip(MESH_AXES, shape, strict=True)))
  devices = shape[1]
  assert plan.bytes["tables"] == pytest.approx(4 * (8 + 1) * items / devices, rel=0.01)
  learned = plan.bytes["other trained parameters"]
  assert learned == pytest.approx(4 * 8 * items / devices, rel=0.01)
  scores = min(GIB, 4 * plan.epoch.layout.targets * items / devices)
  assert scores < plan.bytes["most beside them"] < 6 * GIB
  assert plan.fits


def test_a_plan_counts_what_a_head_adds(tiny):
  """Code tokens of each target, and the scores of all items where they are ranked."""
  sequences = np.random.default_rng(0).integers(1, 41, (50, 20))
  offsets = np.arange(0, sequences.size + 1, 20)
  dataset = Dataset(sequences.ravel(), offsets, np.arange(50), 40, "", None)
  epochs, bytes_ = {}, {}
  for head in ("rank", "generate", "both"):
    keys = {"head": head, "row_length": 128}  # no history is cut
    changes = {f"recommender.{key}": value for key, value in keys.items()}
    config = tiny(changes={**changes, "features.collaborative": ""})
    planner = Planner(config, DEVICES["h200"], dataset, {"text": 8}, 0.4, None)
    plan = planner.plan(dict(zip(MESH_AXES, (1, 1, 1), strict=True)))
    epochs[head], bytes_[head] = plan.epoch, plan.bytes
  targets, levels = epochs["rank"].targets, config.semantic_ids.quantizer.levels
  assert epochs["both"].tokens == epochs["rank"].tokens + levels * targets
  assert epochs["generate"].tokens == epochs["both"].tokens
  ranking = epochs["both"].flops - epochs["generate"].flops
  scores = 6 * targets * 41 * config.recommender.width
  assert scores <= ranking <= 3 * scores
  learned = {head: found["other trained parameters"] for head, found in bytes_.items()}
  width = config.recommender.width
  assert learned["both"] - learned["rank"] >= 4 * (levels + 1) * width**2
  assert learned["both"] == learned["generate"]
