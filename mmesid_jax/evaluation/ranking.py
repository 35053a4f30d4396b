"""Full-catalogue ranking: ranks on the device, HR, nDCG and MRR with bootstrap intervals from the
ranks."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmesid_jax.models.catalogue_scores import candidates
from mmesid_jax.parallel.sharding import pick

PROTOCOLS = ("masked", "unmasked")


def ranks(
  scores_QI: jax.Array,
  target_Q: jax.Array,
  history_QH: jax.Array,
  num_items: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """int32 [Q] ranks from 1, with the history's items left out (masked) and with them (unmasked).

  rank = 1 + number of other items whose score is not below the target's: ties, and NaN, count
  against it, so a constant scorer gets nothing. Items 1 .. num_items are ranked (None: all columns
  but column 0, padding); history_QH is padded with 0. A masked target that stands in its own
  history cannot be recommended and ranks last.
  """
  Q, I = scores_QI.shape  # noqa: E741
  last = num_items or I - 1
  ahead_QI = ~(scores_QI < pick(scores_QI, target_Q)[:, None])
  ahead_QI &= candidates(I, last) & (jnp.arange(I) != target_Q[:, None])
  unmasked_Q = 1 + ahead_QI.sum(1)
  masked_Q = 1 + ahead_QI.at[jnp.arange(Q)[:, None], history_QH].set(False).sum(1)
  repeated_Q = (history_QH == target_Q[:, None]).any(1)
  return jnp.where(repeated_Q, last, masked_Q), unmasked_Q


def values(rank_U: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
  """What every user contributes: HR@k, nDCG@k and MRR@k, float64 [U] each (one target a user)."""
  rank_U = np.asarray(rank_U, np.int64)
  result = {}
  for k in cutoffs:
    hit_U = rank_U <= k
    result[f"HR@{k}"] = hit_U.astype(np.float64)
    result[f"nDCG@{k}"] = np.where(hit_U, 1 / np.log2(rank_U + 1), 0)
    result[f"MRR@{k}"] = np.where(hit_U, 1 / rank_U, 0)
  return result


def summary(
  rank_U: np.ndarray,
  cutoffs: Sequence[int],
  *,
  resamples: int = 0,
  seed: int = 0,
  group_U: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
  """metric -> {"mean", and with resamples > 0 "low", "high"}: 95 % percentile bootstrap over
  users, or over groups of ranks: those of one group are drawn together."""
  per_user = values(rank_U, cutoffs)
  result = {name: {"mean": float(x_U.mean())} for name, x_U in per_user.items()}
  if resamples:
    table_UM = np.stack(list(per_user.values()), 1)
    rng = np.random.default_rng(seed)
    if group_U is None:
      group_U = np.arange(len(table_UM))
    _, group_U = np.unique(group_U, return_inverse=True)
    count_G = np.bincount(group_U)
    sum_GM = np.stack([np.bincount(group_U, x_U) for x_U in table_UM.T], 1)
    G = len(count_G)
    drawn_BG = (rng.integers(0, G, G) for _ in range(resamples))
    means_BM = np.stack([sum_GM[g].sum(0) / count_G[g].sum() for g in drawn_BG])
    low_M, high_M = np.percentile(means_BM, [2.5, 97.5], axis=0)
    for name, low, high in zip(per_user, low_M, high_M, strict=True):
      result[name] |= {"low": float(low), "high": float(high)}
  return result


def paired(
  difference_U: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
  """Mean, and 95 % percentile bootstrap interval over users, of what every user gains.

  The same users stand on both sides of the difference, so what they have in common cancels.
  """
  rng, users = np.random.default_rng(seed), len(difference_U)
  draws = (difference_U[rng.integers(0, users, users)].mean() for _ in range(resamples))
  low, high = np.percentile(list(draws), [2.5, 97.5])
  return float(difference_U.mean()), float(low), float(high)


def table(results: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
  """Text table of model -> protocol -> metric -> {"mean"}; a row for each protocol and model."""
  names = list(next(iter(next(iter(results.values())).values())))
  names = [n for n in names if not n.startswith("MRR")]
  names.sort(key=lambda n: not n.startswith("HR"))  # stable: HR first, then nDCG
  width = max(len(model) for model in results)
  lines = [" " * (width + 10) + "".join(f"{n:>9}" for n in names)]
  for protocol in next(iter(results.values())):
    for model, protocols in results.items():
      cells = "".join(f"{protocols[protocol][n]['mean']:9.4f}" for n in names)
      lines.append(f"{protocol:<9} {model:<{width}}{cells}")
  return "\n".join(lines)
