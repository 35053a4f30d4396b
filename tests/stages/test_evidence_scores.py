"""The search ranks by settings as the model does, whatever the settings share."""

import jax
import numpy as np
import pytest

from mmesid_jax.data.dataset import training_events
from mmesid_jax.data.transitions import count_transitions
from mmesid_jax.data.whitening import fit_whitening
from mmesid_jax.models import evidence
from mmesid_jax.models.evidence import CountSettings, EvidenceModel, EvidenceTables
from mmesid_jax.parallel.mesh import make_mesh, use_mesh
from mmesid_jax.reports.test_ranks import make_evaluator
from mmesid_jax.stages import evidence_scores
from mmesid_jax.stages.evidence_scores import FollowerTable, SettingsRanks, counted_scores
from mmesid_jax.stages.evidence_stages import (
  CONTENT,
  item_shares,
  item_trends,
  make_model,
  whitened_directions,
)
from mmesid_jax.stages.workdir import open_workdir

FOLLOWERS = 8  # fewer than many items have
SETTINGS = {
  **{"window": 5, "distance_decay": 0.5, "recency": 0.6, "tail": 0.2, "tau": 0.7},
  **{
    "popularity": -0.04,
    "trend": 0.3,
    "repeats": 0.5,
    "text.width": 8,
    "text.recency": 0.8,
    "text.weight": 1.5,
  },
  **{"visual.width": 4, "visual.recency": 0.6, "visual.weight": 0.5},
}
OTHERS = [
  *[("window", 2), ("tau", 3.0), ("popularity", 0.0), ("trend", 0.0), ("repeats", -100.0)],
  *[("text.width", 4), ("text.weight", 0.0)],
]


@pytest.fixture(scope="module")
def opened(tiny, tmp_path_factory):
  changes = {"features.collaborative": "", "features.visual": "visual.npy"}
  return open_workdir(tiny(changes=changes), tmp_path_factory.mktemp("scores"))


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 1, 1), (1, 2, 2)])  # the last cuts no 41 rows
@pytest.mark.parametrize("modalities", [(), ("text", "visual")])
def test_ranks_of_several_settings_are_those_of_each_model(opened, modalities, mesh, monkeypatch):
  for module in (evidence, evidence_scores):
    monkeypatch.setattr(module, "NEWEST", 3)  # fewer than most histories have
  jax.clear_caches()  # NEWEST is read when a program is traced
  dataset, features = opened.dataset, opened.features()

  def transitions(window, decay):
    sizes = {"window": window, "decay": decay, "followers": FOLLOWERS}
    return count_transitions(*training_events(dataset), dataset.num_items, **sizes)

  def unit_vectors(m, width):
    unit_IW = whitened_directions(features[m], fit_whitening(features[m], width, 1.0))
    unit_IW[0] = 0
    return unit_IW

  item_E, user_E = training_events(dataset)
  share_I = item_shares(item_E, dataset.num_items)
  trend_I = item_trends(item_E, user_E, dataset.num_items)
  several = [SETTINGS, *(SETTINGS | {name: value} for name, value in OTHERS)]
  with use_mesh(make_mesh(*mesh)):
    evaluator = make_evaluator(opened, CONTENT, "valid")
    found = SettingsRanks(evaluator, (share_I, trend_I), transitions, unit_vectors, modalities)(
      several
    )
    for settings, ranks in zip(several, found, strict=True):
      table = transitions(settings["window"], settings["distance_decay"])
      tensors = {"follower": table.follower_IK, "count": table.count_IK}
      tensors |= {"share": share_I, "trend": trend_I}
      tensors |= {f"unit.{m}": unit_vectors(m, settings[f"{m}.width"]) for m in modalities}
      expected = evaluator.model_ranks(make_model(tensors, settings))
      assert ranks.keys() == expected.keys()
      for protocol, rank_U in expected.items():
        differ = np.mean(ranks[protocol] != rank_U)
        assert differ < 0.02, (protocol, settings)  # a last digit may turn two items round


@pytest.mark.parametrize("at_a_time", [1, 7, 64, 2**16])
def test_followers_are_added_in_chunks_of_any_size(at_a_time, monkeypatch):
  """Also with rows that are empty, or full, and with targets without a history."""
  monkeypatch.setattr(evidence_scores, "FOLLOWERS", at_a_time)
  rng = np.random.default_rng(0)
  used_I = np.array([0, 5, 0, 3, 1, 5, 2], np.int32)
  exists_IK = np.arange(5) < used_I[:, None]
  follower_IK = np.where(exists_IK, [rng.permutation(6)[:5] + 1 for _ in used_I], 0)
  count_IK = np.where(exists_IK, rng.exponential(size=(7, 5)), 0).astype(np.float32)
  history_QX = np.array([[0, 0, 0], [1, 3, 1], [2, 0, 0], [6, 5, 4], [0, 0, 0]], np.int32)
  numbers = {"recency": 0.6, "tail": 0.3, "tau": 0.7}
  table = FollowerTable(*map(jax.numpy.asarray, (follower_IK, count_IK, used_I)))
  tables = EvidenceTables(follower_IK, count_IK, np.ones(7, np.float32), np.zeros(7, np.float32))
  settings = CountSettings(**numbers, popularity=0.0, trend=0.0, repeats=0.0)
  expected_QI = EvidenceModel(tables, settings).scores(history_QX)
  traced_again = jax.jit(lambda *x: counted_scores.__wrapped__(*x))  # for this FOLLOWERS
  found_QI = traced_again(history_QX, table, *numbers.values())
  np.testing.assert_allclose(found_QI[:, 1:], expected_QI[:, 1:], rtol=1e-5)
  assert np.count_nonzero(found_QI) > 10 and not np.any(found_QI[0])
