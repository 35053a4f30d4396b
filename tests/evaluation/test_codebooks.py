"""Health of codebooks, counted by hand."""

import numpy as np
import pytest

from mmesid_jax.evaluation.codebooks import collisions, health, level_health, table


def test_usage_and_perplexity():
  even = level_health(np.array([0, 1, 2, 3] * 5), 8)
  assert even["usage"] == 0.5  # four of eight codes are dead
  assert even["perplexity"] == pytest.approx(4)
  assert level_health(np.zeros(9, int), 8) == pytest.approx({"usage": 1 / 8, "perplexity": 1})
  uneven = level_health(np.array([0, 0, 0, 1]), 2)
  assert uneven["perplexity"] == pytest.approx(0.75**-0.75 * 0.25**-0.25)


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
  report = health(codes, 2)
  assert report.keys() == {"text", "visual", "joint"}
  assert report["text"]["collision_rate"] == report["visual"]["collision_rate"] == 0.5
  assert report["joint"] == {"collision_rate": 0, "largest_group": 1}


def test_levels_are_columns():
  codes = {"text": np.array([[0, 0], [0, 1], [0, 2]])}
  first, second = health(codes, 3)["text"]["levels"]
  assert (first["usage"], second["usage"]) == (pytest.approx(1 / 3), 1)


def test_table_shows_every_modality_and_level():
  codes = {"text": np.array([[0, 0], [0, 1], [0, 1]])}
  lines = table(health(codes, 4)).splitlines()
  assert len(lines) == 3
  assert lines[1].split() == ["text", "33.33%", "2", "25%", "/", "1", "50%", "/", "2"]
  assert lines[2].split() == ["joint", "33.33%", "2"]
