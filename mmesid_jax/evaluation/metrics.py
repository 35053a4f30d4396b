"""All metrics of the evaluation: names and formulas. To add one, add an entry to a table below.

Every user has one target. A rank or a place counts from 1, the best.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmesid_jax.errors import UserError

Formula = Callable[[np.ndarray, int], np.ndarray]  # int64 [E] ranks, cutoff k -> float64 [E]

UNMASKED = "unmasked/"  # before a metric's name: history not left out


def hit(rank_E: np.ndarray, k: int) -> np.ndarray:
  """1 where the rank is at most k, else 0."""
  return (rank_E <= k).astype(np.float64)


def discounted_gain(rank_E: np.ndarray, k: int) -> np.ndarray:
  """nDCG@k of one target: 1 / log2(rank + 1) within the first k, else 0."""
  return np.where(rank_E <= k, 1 / np.log2(rank_E + 1), 0)


def reciprocal_rank(rank_E: np.ndarray, k: int) -> np.ndarray:
  """1 / rank within the first k, else 0."""
  return np.where(rank_E <= k, 1 / rank_E, 0)


def average_precision(rank_E: np.ndarray, k: int) -> np.ndarray:
  """AP@k: the precision at the place of every relevant item, summed, over min(k, relevant items).

  With one relevant item, the target, that is 1 / rank within the first k: equal to MRR@k.
  """
  return reciprocal_rank(rank_E, k)


# Name -> what one user with that rank contributes; the metric is the mean over users.
USER_METRICS: Mapping[str, Formula] = {
  "HR": hit,
  "nDCG": discounted_gain,
  "MRR": reciprocal_rank,
  "MAP": average_precision,
}
# Name -> what one item contributes, by its best place in any user's list; the mean over all items.
CATALOGUE_METRICS: Mapping[str, Formula] = {
  "coverage": hit,  # share of the catalogue that at least one user has among the first k
}
PRINTED = ("HR", "nDCG")  # in the printed tables, in this order


def user_values(rank_U: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
  """ "HR@5", ... -> float64 [U], what every user contributes."""
  return _values(USER_METRICS, rank_U, cutoffs)


def catalogue_summary(place_E: np.ndarray, cutoffs: Sequence[int]) -> dict[str, dict[str, float]]:
  """ "coverage@5", ... -> {"mean"}, of the items' best places in any user's list.

  There is no interval: users drawn again with replacement would cover less than the users do.
  """
  values = _values(CATALOGUE_METRICS, place_E, cutoffs)
  return {name: {"mean": float(value_E.mean())} for name, value_E in values.items()}


def _values(
  formulas: Mapping[str, Formula], rank_E: np.ndarray, cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
  rank_E = np.asarray(rank_E, np.int64)
  return {f"{name}@{k}": of(rank_E, k) for k in cutoffs for name, of in formulas.items()}


def printed_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
  """Those of "HR@5", ... that printed tables show, metric by metric; then one of each metric of the
  catalogue, at the last cutoff."""
  by_metric: dict[str, list[str]] = {}
  for name in names:
    by_metric.setdefault(name.partition("@")[0], []).append(name)
  shown = [name for metric in PRINTED for name in by_metric.get(metric, ())]
  return shown, [by_metric[metric][-1] for metric in CATALOGUE_METRICS if metric in by_metric]


def check_select(select: str, cutoffs: Sequence[int]) -> None:
  """Raises UserError when config.evaluation.select names no metric at one of the cutoffs.

  Metrics of the catalogue are not among them: validation ranks targets and makes no lists.
  """
  known = [f"{name}@{k}" for name in USER_METRICS for k in cutoffs]
  if select.removeprefix(UNMASKED) in known:
    return
  by_small_letters = {name.lower(): name for name in known}
  asked = select.removeprefix(UNMASKED).lower()
  near = difflib.get_close_matches(asked, by_small_letters, 1, cutoff=0)
  raise UserError(
    f"--config.evaluation.select={select}: no such metric at these cutoffs; "
    f"did you mean {by_small_letters[near[0]]}?"
  )
