"""Differences between two runs: what is kept of them in a small file, and intervals from that."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from scipy import stats

from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.ranking import difference_over_seeds
from mmesid_jax.experiments import ablation_table

RESULTS = pathlib.Path(__file__).parents[2] / "results" / "ablations"


def drawn(seed, users=3000, shift=0.0):
  """Ranks of one model by two protocols: the users' tastes, more or less hard, are shared."""
  hard_U = np.random.default_rng(99).normal(3, 1.5, users)
  noise_U = np.random.default_rng(seed).normal(0, 0.5, users)
  rank_U = 1 + np.exp(np.maximum(hard_U + noise_U + shift, 0)).astype(np.int32)
  return {"masked": rank_U, "unmasked": rank_U + 1}


def ndcg(rank_U):
  return np.where(rank_U <= 5, 1 / np.log2(1.0 + rank_U), 0)


def test_a_gain_is_the_users_mean_difference_with_the_interval_of_a_paired_bootstrap():
  ours, base = drawn(0, shift=-0.1), drawn(1)
  found = ablation_table.gains_over_base(ours, base)
  assert list(found) == ["masked nDCG@5", "masked HR@10", "unmasked nDCG@5", "unmasked HR@10"]
  difference_U = ndcg(ours["unmasked"]) - ndcg(base["unmasked"])
  gain = found["unmasked nDCG@5"]
  assert gain["mean"] == pytest.approx(difference_U.mean(), abs=1e-6)
  assert np.mean(gain["groups"]) == pytest.approx(difference_U.mean(), abs=1e-5)
  oracle = stats.bootstrap((difference_U,), np.mean, method="percentile", rng=0)
  expected = oracle.confidence_interval
  reach = (expected.high - expected.low) / 2
  np.testing.assert_allclose(gain["interval"], expected, atol=0.15 * reach)
  hit_U = (ours["masked"] <= 10).astype(float) - (base["masked"] <= 10)
  assert found["masked HR@10"]["mean"] == pytest.approx(hit_U.mean(), abs=1e-6)


def test_groups_of_users_give_the_interval_that_the_users_would():
  pairs = [(drawn(seed, shift=-0.1), drawn(50 + seed)) for seed in range(3)]
  gains = [ablation_table.gains_over_base(*pair)["masked nDCG@5"] for pair in pairs]
  mean, low, high = ablation_table.pool_seeds(gains)
  difference_SU = np.stack([ndcg(a["masked"]) - ndcg(b["masked"]) for a, b in pairs])
  exact, *ends = difference_over_seeds(difference_SU)
  assert mean == pytest.approx(exact, abs=1e-6) == (low + high) / 2
  assert (high - low) / (ends[1] - ends[0]) == pytest.approx(1, abs=0.35)
  assert ablation_table.pool_seeds(gains[:1]) == (gains[0]["mean"], *gains[0]["interval"])


def test_seeds_that_differ_make_the_interval_wide():
  """The three seeds of `paper` in results/ablations: -.0243, -.0142, -.0148."""
  rng = np.random.default_rng(0)
  groups = rng.normal(0, 0.005, 32) + rng.normal(0, 0.002, (3, 32))
  groups += np.array([[-0.0243], [-0.0142], [-0.0148]]) - groups.mean(1, keepdims=True)
  gains = [{"mean": g.mean(), "groups": g.tolist()} for g in groups]
  mean, low, high = ablation_table.pool_seeds(gains)
  of_seeds = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(groups.mean(1)))
  np.testing.assert_allclose((low, high), of_seeds, rtol=0.25)
  assert low < -0.0243 and high > -0.0142


def test_equal_ranks_differ_by_nothing():
  gain = ablation_table.gains_over_base(drawn(0), drawn(0))["masked HR@10"]
  assert (gain["mean"], gain["interval"]) == (0, [0, 0])


@pytest.mark.parametrize(("text", "says"), [("{", "not a JSON object"), ("{}", "no result of")])
def test_a_file_that_is_no_result_is_named(tmp_path, text, says):
  (tmp_path / "x.json").write_text(text)
  with pytest.raises(UserError, match=f"x.json: {says}"):
    ablation_table.read_results(tmp_path)


def written(folder: pathlib.Path, name="no_codes-seed0.json", **changes) -> pathlib.Path:
  """A result of this repository with changes, in a folder."""
  result = json.loads((RESULTS / "no_codes-seed0.json").read_text())
  ablation_table.write_result(folder / name, result | changes)
  return folder / name


def test_two_data_sets_do_not_share_a_table(tmp_path):
  written(tmp_path, "a.json")
  for changes in ({"dataset": "other"}, {"users": 9}):
    written(tmp_path, "b.json", variant="b", **changes)
    with pytest.raises(UserError, match="b.json: of another data set than .*a.json"):
      ablation_table.read_results(tmp_path)


GAINS = json.loads((RESULTS / "no_codes-seed0.json").read_text())["to_base"]
GAIN = GAINS["masked nDCG@5"]


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *(("variant", x) for x in (["x"], None, 3)),
    *(("seed", x) for x in ([1], "1", 1.0, True)),
    *((name, x) for name in ("changes", "config") for x in (None, [1], "x")),
    *(("dataset", x) for x in (None, {})),
    *(("users", x) for x in (None, "9", 0)),
    ("git", 3),
    *((name, x) for name in ("test", "valid") for x in (None, {}, [1], {"masked": {}})),
    ("test", dict.fromkeys(("masked", "unmasked"), {"nDCG@5": [0.1, "a", 0.2], "HR@10": [0] * 3})),
    *(("to_base", x) for x in ([1], {"x": 1}, 3, {"masked nDCG@5": GAIN})),
    *(("to_base", GAINS | {"masked HR@10": GAIN | {name: x}}) for name in GAIN for x in ("", [])),
    ("to_base", GAINS | {"masked HR@10": GAIN | {"groups": [0] * 33}}),
  ],
)
def test_a_damaged_result_is_named_with_its_field(tmp_path, field, value):
  path = written(tmp_path, **{field: value})
  with pytest.raises(UserError, match=f"^{path}: {field}: not as it was written, expected .*"):
    ablation_table.read_results(tmp_path)


def test_a_table_of_another_program_stays_and_those_of_earlier_runs_are_written_again(tmp_path):
  for folder in ("ablations", "options"):
    shutil.copy(RESULTS.parent / folder / "table.md", tmp_path)
    ablation_table.write_table(tmp_path, ablation_table.ablation_tables({}, []))
  (tmp_path / "table.md").write_text("# My notes\n")
  with pytest.raises(UserError, match="table.md: mmesid_jax.ablate did not write it; move it away"):
    ablation_table.write_table(tmp_path, "x")
  assert (tmp_path / "table.md").read_text() == "# My notes\n"
