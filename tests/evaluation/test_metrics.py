"""Metrics against lists of items that are walked through one place at a time."""

import math

import numpy as np
import pytest

from mmesid_jax import pipeline
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation import metrics, ranking
from mmesid_jax.evaluation.metrics import catalogue_summary, check_select, user_values

CUTOFFS = (1, 5, 10)


def walk(rank, k):
  """Metrics of a list with one relevant item, by their textbook definitions."""
  relevant = [place == rank for place in range(1, 31)][:k]
  precision = [sum(relevant[: i + 1]) / (i + 1) for i in range(len(relevant))]
  first = next((i + 1 for i, r in enumerate(relevant) if r), None)
  return {
    f"HR@{k}": float(any(relevant)),
    f"nDCG@{k}": sum(r / math.log2(i + 2) for i, r in enumerate(relevant)) / (1 / math.log2(2)),
    f"MRR@{k}": 1 / first if first else 0.0,
    f"MAP@{k}": sum(p * r for p, r in zip(precision, relevant, strict=True)) / min(k, 1),
  }


@pytest.mark.parametrize("k", CUTOFFS)
def test_what_a_user_contributes_is_that_of_a_list_walked_through(k):
  values = user_values(np.arange(1, 31), (k,))
  for rank in range(1, 31):
    expected = walk(rank, k)
    assert expected.keys() == values.keys()
    for name, value in expected.items():
      assert values[name][rank - 1] == pytest.approx(value), (name, rank)


def test_names_go_cutoff_by_cutoff():
  names = list(user_values(np.array([1]), (5, 10)))
  assert names[:3] == ["HR@5", "nDCG@5", "MRR@5"] and names[len(names) // 2] == "HR@10"


def test_coverage_is_the_share_of_items_in_any_list():
  places = np.array([1, 3, 2, 30, np.iinfo(np.int32).max], np.int32)
  found = catalogue_summary(places, (1, 2, 30))
  assert found == {
    "coverage@1": {"mean": 0.2},
    "coverage@2": {"mean": 0.4},
    "coverage@30": {"mean": 0.8},
  }


def test_a_metric_more_is_one_entry(monkeypatch):
  """Summary, validation's choice and the printed table know it from the table of metrics."""
  monkeypatch.setitem(metrics.USER_METRICS, "worst", lambda rank_N, k: 1.0 * (rank_N > k))
  monkeypatch.setattr(metrics, "PRINTED", ("worst",))
  check_select("unmasked/worst@5", CUTOFFS)
  found = ranking.summarize_ranks(np.array([1, 9, 9]), (5,), resamples=20)
  assert found["worst@5"]["mean"] == pytest.approx(2 / 3)
  table = ranking.ranking_table({"SASRec": {"masked": found}})
  assert table.splitlines()[0].split() == ["worst@5"]
  assert table.splitlines()[1].split() == ["masked", "SASRec", "0.6667"]


@pytest.mark.parametrize(
  ("select", "cutoffs"),
  [
    ("nDCG@10", CUTOFFS),
    ("unmasked/MRR@20", (5, 10, 20)),
    ("MAP@1", CUTOFFS),
    ("HR@10", CUTOFFS),
    ("HR@7", (7,)),
  ],
)
def test_a_metric_at_a_cutoff_may_be_selected_by(select, cutoffs):
  check_select(select, cutoffs)


@pytest.mark.parametrize(
  ("changes", "near"),
  [
    ({"evaluation.select": "ndcg@10"}, "select=ndcg@10: .*mean nDCG@10"),
    ({"evaluation.cutoffs": (5,)}, "select=nDCG@10: .*mean nDCG@5"),
  ],
)
def test_it_is_checked_before_anything_trains(tiny, changes, near):
  with pytest.raises(UserError, match=f"^--config.evaluation.{near}"):
    pipeline.check_config(tiny(changes=changes))


@pytest.mark.parametrize(
  ("select", "near"),
  [
    ("nDCG@7", "nDCG@"),
    ("ndcg@10", "nDCG@10"),
    ("masked/HR@5", "HR@5"),
    ("coverage@5", ""),  # validation makes no lists
    ("unmasked/", ""),
  ],
)
def test_another_name_is_refused_with_one_that_is_near(select, near):
  with pytest.raises(UserError, match=f"^--config.evaluation.select={select}: .*mean {near}"):
    check_select(select, CUTOFFS)


def test_coverage_is_printed_where_it_fits():
  masked = {name: {"mean": 0.25} for name in user_values(np.array([1]), (5, 10, 20))}
  masked |= catalogue_summary(np.array([1, 9, 30]), (5, 10, 20))
  lines = ranking.ranking_table({"SASRec": {"masked": masked}}).splitlines()
  header = "HR@5 HR@10 HR@20 nDCG@5 nDCG@10 nDCG@20"
  assert lines[0].split() == [*header.split(), "coverage@20"]
  assert lines[1].split() == ["masked", "SASRec", *["0.2500"] * 6, "0.6667"]
  long = "a model of which the name is long"
  lines = ranking.ranking_table({long: {"masked": masked}}).splitlines()
  assert lines[0].split() == header.split()
  lines = ranking.ranking_table(
    {
      "SASRec": {"masked": masked},
      "x": {
        "masked": {name: value for name, value in masked.items() if not name.startswith("coverage")}
      },
    }
  ).splitlines()
  assert lines[0].split() == header.split()
