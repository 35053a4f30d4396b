"""The stages, and what their artifacts depend on."""

import jax
import numpy as np
import pytest

from mmesid_jax.config.saved import artifact_keys
from mmesid_jax.config.schema import BASELINES, TRAINED, default_config
from mmesid_jax.stages.registry import MODELS, STAGES
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import open_workdir


def test_the_configuration_names_the_same_stages_in_the_same_order():
  config = default_config()
  assert (*config.stages, *BASELINES) == tuple(STAGES)
  assert all(name in config for name in TRAINED)
  assert set(config.run.steps_at_once) == {*TRAINED, *BASELINES}


def test_a_stage_comes_after_those_that_it_reads():
  names = [*STAGES]
  for name, stage in STAGES.items():
    for upstream in stage.upstream(default_config()):
      assert names.index(upstream.name) < names.index(name)


def test_every_model_has_a_name_of_its_own_in_the_tables():
  names = [stage.model_name for stage in MODELS.values()]
  assert len({*names, "popularity"}) == len(names) + 1


def test_the_random_key_depends_on_the_name_of_the_stage_alone():
  """A new stage, wherever it stands, leaves the seeds of the others as they are."""

  class NewStage(Stage):
    name = "another_stage"

  keys = [np.asarray(jax.random.key_data(s.key(3))) for s in (*STAGES.values(), NewStage())]
  assert len({key.tobytes() for key in keys}) == len(STAGES) + 1
  renamed = type("Renamed", (Stage,), {"name": "collaborative"})()
  first = keys[[*STAGES].index("collaborative")]
  np.testing.assert_array_equal(jax.random.key_data(renamed.key(3)), first)


# key -> stages whose artifacts depend on it
DEPENDS = {
  "evaluation.select": ("HR@5", {"counts", "content", "collaborative", "recommender", "blend"}),
  "counts.followers": (3, {"counts", "content", "blend"}),
  "semantic_ids.epochs": (1, {"semantic_ids", "recommender", "blend"}),
  "recommender.width": (16, {"semantic_ids", "recommender", "blend"}),
  "recommender.epochs": (1, {"recommender", "blend"}),
  "seed": (1, {"collaborative", "semantic_ids", "recommender", "blend"}),
  "run.log_every": (1, set()),
}


@pytest.mark.parametrize("key", DEPENDS)
def test_a_key_changes_the_fingerprints_of_the_stages_that_depend_on_it(key, tiny, tmp_path):
  """Vectors of the collaborative stage are not used, so a change of it ends there."""
  value, expected = DEPENDS[key]
  own = {"features.collaborative": ""}
  before = open_workdir(tiny(changes=own), tmp_path)
  after = open_workdir(tiny(changes={**own, key: value}), tmp_path)
  stages = {n: s for n, s in STAGES.items() if n not in BASELINES}
  changed = {n for n, s in stages.items() if s.fingerprint(before) != s.fingerprint(after)}
  assert changed == expected


def test_a_key_that_was_added_makes_nothing_stale_until_it_is_used():
  config = default_config()
  assert "recommender.as_new" not in artifact_keys(config, ("recommender.",))
  assert "recommender.optimizer.kind" not in artifact_keys(config, ("recommender.",))
  config.recommender.as_new = 0.1
  assert artifact_keys(config, ("recommender.",))["recommender.as_new"] == 0.1
  assert artifact_keys(config, ("seed",)) == {"seed": 0}
