"""Geometry of item vectors: whether they keep the order of distances (forgetting), and how many
directions they fill (collapse). Source: MME-SID, section 1."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mmesid_jax.data.dataset import Dataset, evaluated_users
from mmesid_jax.display.table import format_table

NUMBERS_AT_ONCE = 4_000_000  # pairs, or numbers of vectors: bounds the memory for many users


class Tau(NamedTuple):
  """Kendall's tau as the mean over users, the number of users, and the share of tied pairs."""

  mean: float
  users: int
  ties: float


def kendall_tau(original_IV: np.ndarray, other_ID: np.ndarray, dataset: Dataset) -> Tau:
  """Kendall's tau of two tables: do both put a user's items in the same order around the target?

  For every user with a test target t and a history h_1 .. h_n of at least 2 distinct items, all
  pairs of history items are compared by their Euclidean distance to t: a pair is concordant when
  both tables put the same item nearer, discordant when they differ, and tied (neither) when one of
  them puts both at the same distance. tau = (concordant - discordant) / pairs, averaged over the
  users: tau-a, so ties count against the tables. Source: MME-SID, equation of the Kendall's tau.

  original_IV, other_ID: [I, width], any two widths. Raises ValueError when no user has a pair.
  """
  total, tied, pairs, users = 0.0, 0, 0, 0
  widest = max(original_IV.shape[1], other_ID.shape[1])
  for history_UX, target_U in _histories(dataset, widest):
    one = _order(original_IV, history_UX, target_U)
    two = _order(other_ID, history_UX, target_U)
    agreement_UXX = one * two  # every pair twice
    n = history_UX.shape[1]
    total += float((agreement_UXX.sum((1, 2), dtype=np.int64) / (n * (n - 1))).sum())
    tied += (agreement_UXX.size - np.count_nonzero(agreement_UXX)) - len(target_U) * n
    pairs += len(target_U) * n * (n - 1)
    users += len(target_U)
  if not users:
    raise ValueError("no user has a target and two distinct items before it")
  return Tau(total / users, users, float(tied / pairs))


def _histories(dataset: Dataset, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Distinct items before the test target, [U, X], and the targets, [U]; users of one X at once."""
  by_length: dict[int, list[tuple[np.ndarray, int]]] = {}
  place_U = dataset.split.targets["test"]
  for row in evaluated_users(dataset, "test"):
    sequence, place = dataset.sequence(row), place_U[row]
    distinct = np.unique(sequence[:place])
    if len(distinct) > 1:
      by_length.setdefault(len(distinct), []).append((distinct, sequence[place]))
  for length, users in sorted(by_length.items()):
    at_once = max(NUMBERS_AT_ONCE // (length * max(length, width)), 1)
    for first in range(0, len(users), at_once):
      histories, targets = zip(*users[first : first + at_once], strict=True)
      yield np.stack(histories), np.array(targets)


def _order(table_IV: np.ndarray, history_UX: np.ndarray, target_U: np.ndarray) -> np.ndarray:
  """int8 [U, X, X]: the sign of how much farther from the target item i is than item j."""
  # float64 differences: equal vectors are equally far, to the last bit
  apart_UXV = table_IV[history_UX].astype(np.float64) - table_IV[target_U][:, None]
  distance_UX = (apart_UXV**2).sum(-1)
  return np.sign(distance_UX[:, :, None] - distance_UX[:, None]).astype(np.int8)


def spectrum(x_ED: np.ndarray) -> np.ndarray:
  """Singular values of the centered rows, largest first, divided by their sum; float64
  [min(E, D)]."""
  x_ED = np.asarray(x_ED, np.float64)
  x_ED = x_ED - x_ED.mean(0)
  gram = x_ED.T @ x_ED if x_ED.shape[0] >= x_ED.shape[1] else x_ED @ x_ED.T
  values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
  return values / max(values.sum(), 1e-300)


def effective_rank(spectrum_W: np.ndarray) -> float:
  """exp of the entropy of a spectrum: the number of directions that are filled, if all equally.

  Between 1 and W; 0 for rows that are all equal. Source: Roy and Vetterli 2007.
  """
  p_W = spectrum_W[spectrum_W > 0]
  return float(np.exp(-(p_W * np.log(p_W)).sum())) if len(p_W) else 0.0


class Plane(NamedTuple):
  """Coordinates of the rows on the two principal axes, and the share of the variance there."""

  place_E2: np.ndarray
  share: float


def principal_plane(x_ED: np.ndarray) -> Plane:
  """Centered rows on the two directions of their largest variance (PCA), the larger first."""
  x_ED = np.asarray(x_ED, np.float64)
  x_ED = x_ED - x_ED.mean(0)
  variance_D, directions_DD = np.linalg.eigh(x_ED.T @ x_ED)
  largest = directions_DD[:, ::-1][:, :2]
  place_E2 = np.pad(x_ED @ largest, ((0, 0), (0, 2 - largest.shape[1])))
  return Plane(place_E2, float(variance_D[-2:].sum() / max(variance_D.sum(), 1e-300)))


def geometry_table(tau: Mapping[str, Mapping], inputs: Mapping[str, Mapping]) -> str:
  """Two text tables: tau of every modality's codes, and the effective rank of the item inputs.

  Args:
    tau: modality -> column -> Tau as a dict.
    inputs: column -> part -> {"width", "effective_rank"}.

  A missing value is shown as -.
  """
  columns = ("quantized", "before", "after")
  taus = [
    [modality, *(f"{found[c]['mean']:.4f}" if c in found else "-" for c in columns)]
    for modality, found in tau.items()
  ]
  ranks = [
    [
      part,
      one["width"],
      *(f"{inputs[c][part]['effective_rank']:.1f}" if c in inputs else "-" for c in columns[1:]),
    ]
    for part, one in inputs["before"].items()
  ]
  tables = (
    format_table(["tau to the original", *columns], taus),
    format_table(["effective rank", "width", *columns[1:]], ranks),
  )
  return "\n".join(tables)
