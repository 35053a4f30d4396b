"""Health of codebooks, counted by hand."""

import numpy as np
import pytest

from mmesid_jax.evaluation.codebook_health import (
  codebook_table,
  collisions,
  describe_dead_codes,
  level_health,
  measure_health,
  residual_norms,
)


def test_usage_and_perplexity():
  even = level_health(np.array([0, 1, 2, 3] * 5), 8)
  assert even["usage"] == 0.5  # four of eight codes are dead
  assert even["dead"] == 4
  assert even["perplexity"] == pytest.approx(4)
  assert level_health(np.zeros(9, int), 8) == pytest.approx(
    {"usage": 1 / 8, "dead": 7, "perplexity": 1, "gini": 7 / 8}
  )
  uneven = level_health(np.array([0, 0, 0, 1]), 2)
  assert uneven["perplexity"] == pytest.approx(0.75**-0.75 * 0.25**-0.25)


def test_levels_with_many_dead_codes_are_named_with_what_helps():
  """Code 1 of level 1 is one of ten; nine of ten codes of level 2 are dead."""
  used = np.repeat(np.arange(10), 2)
  few, all_used = np.stack([used, 0 * used], 1), np.stack([used, used], 1)
  health = measure_health({"text": few, "visual": all_used}, 10)
  says = describe_dead_codes(health)
  assert says.startswith("9 codes of level 2 of text (90%) have no items")
  assert "semantic_ids.epochs" in says and "quantizer.codes" in says
  assert describe_dead_codes(measure_health({"visual": all_used}, 10)) is None
  nine = np.minimum(used, 8)[:, None]  # 10 % dead is no reason to speak
  assert describe_dead_codes(measure_health({"visual": nine}, 10)) is None


def test_collisions():
  """Three items share (0, 1), two share (2, 2), (1, 0) is another ID than (0, 1)."""
  codes = np.array([[0, 1], [0, 1], [2, 2], [1, 0], [2, 2], [0, 1]])
  assert collisions(codes) == {"collision_rate": pytest.approx(1 - 3 / 6), "largest_group": 3}
  assert collisions(np.arange(4)[:, None]) == {"collision_rate": 0, "largest_group": 1}


@pytest.mark.parametrize(("levels", "codes"), [(1, 3), (4, 256), (12, 256), (3, 2**31 - 1)])
def test_collisions_are_counted_row_by_row(levels, codes):
  """Up to 96 bits an ID: more than fits one integer. Rows that share all but one code differ."""
  rng = np.random.default_rng(0)
  distinct = rng.integers(0, codes, (40, levels)).astype(np.int32)
  distinct[0], distinct[1:3] = codes - 1, distinct[3]
  distinct[1, 0], distinct[2, -1] = (distinct[1:3, [0, -1]].diagonal() + 1) % codes
  code = distinct[rng.integers(0, 40, 500)]
  _, count = np.unique(code, axis=0, return_counts=True)
  found = collisions(code)
  assert found == {
    "collision_rate": pytest.approx(1 - len(count) / 500),
    "largest_group": count.max(),
  }


def test_joint_codes_are_all_modalities_together():
  """Each modality collides, items in pairs; together they tell every item apart."""
  codes = {"text": np.array([[0], [0], [1], [1]]), "visual": np.array([[0], [1], [0], [1]])}
  report = measure_health(codes, 2)
  assert report.keys() == {"text", "visual", "joint"}
  assert report["text"]["collision_rate"] == report["visual"]["collision_rate"] == 0.5
  assert report["joint"] == {"collision_rate": 0, "largest_group": 1}


def test_levels_are_columns():
  codes = {"text": np.array([[0, 0], [0, 1], [0, 2]])}
  first, second = measure_health(codes, 3)["text"]["levels"]
  assert (first["usage"], second["usage"]) == (pytest.approx(1 / 3), 1)


def test_gini_is_the_mean_difference_of_the_counts():
  """By its definition: the mean of |a - b| over all pairs of codes, by twice the mean count."""
  count_C = np.array([7, 0, 2, 2, 9])
  pairs = np.abs(count_C[:, None] - count_C).mean()
  found = level_health(np.repeat(np.arange(5), count_C), 5)
  assert found["gini"] == pytest.approx(pairs / (2 * count_C.mean()))
  assert level_health(np.array([2, 0, 1]), 3)["gini"] == pytest.approx(0)


def test_entropy_and_purity_counted_by_hand():
  """First codes: 0 0 0 0 1 1, then all but the first two items differ.

  Kinds: code 0 holds a a b b, of which 2 are the commonest; code 1 holds b and one of no kind.
  """
  codes = {"text": np.array([[0, 0], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1]])}
  found = measure_health(codes, 4, ["a", "b", "b", "a", "b", None])["text"]
  first = -(4 / 6 * np.log2(4 / 6) + 2 / 6 * np.log2(2 / 6))
  second = -(2 / 6 * np.log2(2 / 6) + 4 * 1 / 6 * np.log2(1 / 6))
  assert found["entropy"] == pytest.approx([first, second])
  assert found["purity"] == pytest.approx([3 / 5, 4 / 5])
  assert found["largest_category"] == 3 / 5
  assert len(found["purity_by_chance"]) == 2


def test_purity_by_chance_is_that_of_the_same_groups_filled_at_random():
  """Items of one code are of one kind: pure. At random, large groups fall to the largest kind's
  share, and groups of one stay pure: both are no merit of the codes."""
  kinds = [k for k in "abcd" for _ in range(500)]
  code_NL = np.stack([np.repeat(np.arange(4), 500), np.arange(2000)], axis=1)
  found = measure_health({"m": code_NL}, 2000, kinds)["m"]
  assert found["purity"] == [1, 1]
  assert found["purity_by_chance"][0] == pytest.approx(0.25, abs=0.06)
  assert found["purity_by_chance"][1] == 1
  assert found["largest_category"] == 0.25


def test_without_categories_there_is_no_purity():
  codes = {"text": np.array([[0], [1]])}
  assert "purity" not in measure_health(codes, 2)["text"]
  assert "purity" not in measure_health(codes, 2, [None, None])["text"]
  with pytest.raises(ValueError, match="1 categories of 2 items"):
    measure_health(codes, 2, ["a"])


def test_residual_norms():
  """The length of (3, 4) is 5; after (3, 0) there is 4 left, after (0, 4) nothing."""
  book_LCD = np.array([[[3, 0], [0, 0]], [[0, 4], [1, 0]]], np.float32)
  z_ND = np.array([[3, 4], [0, 2]], np.float32)
  norms = residual_norms(z_ND, np.array([[0, 0], [1, 1]]), book_LCD)
  assert norms == pytest.approx([1, (4 / 5 + 1) / 2, (0 + 5**0.5 / 2) / 2], rel=1e-5)  # float32
  assert z_ND.tolist() == [[3, 4], [0, 2]]


def test_table_shows_every_modality_and_level():
  codes = {"text": np.array([[0, 0], [0, 1], [0, 1]])}
  lines = codebook_table(measure_health(codes, 4)).splitlines()
  assert lines[1].split() == "text 1 25.0% 3 1.0 0.75 0.0 bit".split()
  assert lines[2].split() == "2 50.0% 2 1.9 0.58 0.9 bit".split()
  assert lines[4].split() == ["text", "33.33%", "2"]
  assert lines[5].split() == ["joint", "33.33%", "2"]
  lines = codebook_table(measure_health(codes, 4, ["a", "b", "b"])).splitlines()
  assert lines[0].endswith("purity  by chance")
  assert lines[1].split()[-2:] == ["66.7%", "66.7%"]
  assert lines[-1].endswith("the largest category has 66.7% of the items")
