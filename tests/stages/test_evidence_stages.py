"""The baselines that count: their search, and that they come back from their artifacts."""

import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.data.dataset import training_events
from mmesid_jax.data.whitening import fit_whitening
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.files import artifact
from mmesid_jax.models.evidence import EvidenceModel
from mmesid_jax.reports.test_ranks import make_evaluator
from mmesid_jax.stages import evidence_stages
from mmesid_jax.stages.evidence_stages import (
  CONTENT,
  COUNTS,
  item_shares,
  item_trends,
  search_settings,
  whitened_directions,
)
from mmesid_jax.stages.workdir import open_workdir

STAGES = ("counts", "content")
FEW = {  # options of the search
  "window": (5, 2),
  "distance_decay": (0.5,),
  "recency": (0.6, 0.9),
  "tail": (0.0,),
  "tau": (1.0,),
  "popularity": (-0.04, 0.1),
  "trend": (0.0, 0.2),
  "repeats": (0.0, -100.0),
}


def test_the_search_finds_the_best_of_settings_that_do_not_interact():
  options = {"a": (0, 1, 2, 3), "b": (5, 1), "c": (0,)}
  asked = []

  def score(several):
    asked.extend(tuple(settings.values()) for settings in several)
    return [np.full(4, -((settings["a"] - 2) ** 2) - settings["b"]) for settings in several]

  chosen, best, tried = search_settings(options, score, "search")
  assert chosen == {"a": 2, "b": 1, "c": 0} and best == -1
  assert tried == len(asked) == len(set(asked))  # none twice


def test_the_search_comes_back_to_settings_that_depend_on_later_ones():
  def score(several):
    values = {(0, 0): 1, (1, 0): 0, (0, 1): 2, (1, 1): 3}
    return [np.full(4, values[settings["a"], settings["b"]]) for settings in several]

  chosen, *_ = search_settings({"a": (0, 1), "b": (0, 1)}, score, "search")
  assert chosen == {"a": 1, "b": 1}


@pytest.mark.parametrize(("gain", "chosen"), [(0.09, 0), (0.11, 1)])
def test_a_gain_within_its_standard_error_changes_nothing(gain, chosen):
  noise_U = np.tile([1.0, -1.0], 50)  # standard error 0.1

  def score(several):
    return [settings["a"] * (noise_U + gain) for settings in several]

  assert search_settings({"a": (0, 1)}, score, "search")[0] == {"a": chosen}


@pytest.fixture(scope="module")
def counted(tiny, tmp_path_factory):
  """A workdir with both baselines."""
  path = tmp_path_factory.mktemp("counted")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evidence_stages.CountsStage, "OPTIONS", FEW)
    patch.setattr(evidence_stages, "WIDTHS", (8, 4))
    patch.setattr(evidence_stages, "RECENCIES", (0.6,))
    return pipeline.run_pipeline(tiny(changes={"stages": STAGES}), path)


@pytest.mark.parametrize("stage", [COUNTS, CONTENT], ids=STAGES)
def test_a_loaded_model_ranks_as_the_search_found(counted, stage):
  header = artifact.read_header(counted.artifact(stage.name), stage.name)
  evaluator: Evaluator = make_evaluator(counted, stage, "valid")
  found = evaluator.metrics(stage.load_model(counted), counted.config.evaluation.cutoffs)
  expected = (found["nDCG@10"] + found["unmasked/nDCG@10"]) / 2
  assert header["valid"] == pytest.approx(expected, rel=1e-6)


def test_both_are_rows_of_the_results(counted):
  models = pipeline.test_ranks.evaluate_models(counted, "test")["models"]
  assert [*models] == ["popularity", "counts", "counts + content"]


def test_validation_and_test_items_are_not_counted(counted):
  """The shares, and the pairs of items, are those of the training parts."""
  dataset = counted.dataset
  item_E, user_E = training_events(dataset)
  share_I = item_shares(item_E, dataset.num_items)
  assert share_I[1:].sum() == pytest.approx(1)
  trained = np.concatenate(
    [dataset.sequence(u)[: dataset.train_lengths[u]] for u in range(len(dataset))]
  )
  counts_I = np.bincount(trained, minlength=dataset.num_items + 1)
  total = len(trained) + dataset.num_items
  np.testing.assert_allclose(share_I[1:] * total, counts_I[1:] + 1, rtol=1e-5)
  model = COUNTS.load_model(counted)
  pairs = {tuple(p) for u in range(len(dataset)) for p in _pairs(dataset, u, trained_only=True)}
  counted_pairs = {
    (a, int(b)) for a, row in enumerate(model.follower_IK[...]) for b in row if b > 0
  }
  assert counted_pairs <= pairs


def test_trends_are_shares_near_the_ends_beside_shares_of_all(counted):
  dataset = counted.dataset
  late, all_of, weights = np.zeros(dataset.num_items + 1), np.zeros(dataset.num_items + 1), []
  for u in range(len(dataset)):
    trained = dataset.sequence(u)[: dataset.train_lengths[u]].tolist()
    for later, item in enumerate(reversed(trained)):
      late[item] += 0.8**later
      all_of[item] += 1
      weights.append(0.8**later)
  expected_I = np.log((late + 0.1) / (all_of * np.mean(weights) + 0.1))
  found_I = item_trends(*training_events(dataset), dataset.num_items)
  np.testing.assert_allclose(found_I, expected_I, rtol=1e-5, atol=1e-6)
  assert np.std(expected_I[1:]) > 0.1


def test_an_item_without_content_is_similar_to_nothing():
  """Its row is the mean of the others, rounded; it must not become a direction of rounding."""
  x_IV = np.random.default_rng(0).normal(3, 1, (200, 12)).astype(np.float16).astype(np.float32)
  x_IV[[7, 9]] = x_IV[1:].mean(0).astype(np.float16)
  unit_IW = whitened_directions(x_IV, fit_whitening(x_IV, 6, 1.0))
  lengths_I = np.linalg.norm(unit_IW, axis=1)
  np.testing.assert_allclose(np.delete(lengths_I, [7, 9]), 1, rtol=1e-5)
  assert not unit_IW[[7, 9]].any()


def _pairs(dataset, user: int, *, trained_only: bool):
  items = dataset.sequence(user)[: dataset.train_lengths[user] if trained_only else None].tolist()
  return [(a, b) for place, b in enumerate(items) for a in items[:place]]


def test_without_content_there_is_no_second_baseline(tiny, tmp_path):
  config = tiny(changes={"features.text": "", "features.visual": ""})
  assert not CONTENT.applies(config) and COUNTS.applies(config)


def test_the_seed_changes_neither(tiny, tmp_path):
  one, other = (open_workdir(tiny(changes={"seed": s}), tmp_path) for s in (0, 1))
  for stage in (COUNTS, CONTENT):
    assert stage.fingerprint(one) == stage.fingerprint(other)


def test_a_model_is_as_large_as_its_catalogue(counted):
  model = COUNTS.load_model(counted)
  assert isinstance(model, EvidenceModel) and model.num_items == counted.dataset.num_items
