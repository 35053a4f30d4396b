"""Are the semantic IDs any good: how evenly codes are used, and how many items share one ID."""

from collections.abc import Mapping

import numpy as np


def level_health(code_N: np.ndarray, codes: int) -> dict[str, float]:
  """One level: share of codes in use, and perplexity exp(-sum p log p), at most `codes`."""
  p_C = np.bincount(code_N, minlength=codes) / max(len(code_N), 1)
  used_C = p_C[p_C > 0]
  return {
    "usage": float((p_C > 0).mean()),
    "perplexity": float(np.exp(-(used_C * np.log(used_C)).sum())),
  }


def collisions(code_NL: np.ndarray) -> dict[str, float]:
  """collision rate = 1 - distinct IDs / items, and how many items the most shared ID has."""
  _, count = np.unique(_numbered(code_NL), return_counts=True)
  return {"collision_rate": 1 - len(count) / len(code_NL), "largest_group": int(count.max())}


def _numbered(code_NL: np.ndarray) -> np.ndarray:
  """int64 [N], equal where all L codes are: one column is sorted many times faster than rows.

  Codes are the digits of a number; when more would not fit 63 bits, numbers are replaced by their
  ranks, which are less than N.
  """
  number_N, limit = np.zeros(len(code_NL), np.int64), 1
  for code_N in code_NL.T:
    base = int(code_N.max()) + 1
    if limit * base > np.iinfo(np.int64).max:
      distinct, number_N = np.unique(number_N, return_inverse=True)
      limit = len(distinct)
    number_N, limit = number_N * base + code_N, limit * base
  return number_N


def health(codes: Mapping[str, np.ndarray], num_codes: int) -> dict[str, dict]:
  """modality -> {"levels": [...], collisions}, and "joint": collisions of all modalities' codes
  together.

  codes: modality -> int [N, L], items only (no padding row).
  """
  report = {
    m: {"levels": [level_health(level, num_codes) for level in c.T], **collisions(c)}
    for m, c in codes.items()
  }
  return report | {"joint": collisions(np.concatenate(list(codes.values()), axis=1))}


def table(report: Mapping[str, Mapping]) -> str:
  """Text table: a row a modality, usage and perplexity of every level."""
  lines = [f"{'codes':<14}{'collisions':>11}{'largest':>9}   usage / perplexity by level"]
  for modality, found in report.items():
    levels = "  ".join(
      f"{level['usage']:.0%} / {level['perplexity']:.0f}" for level in found.get("levels", [])
    )
    rate, largest = found["collision_rate"], found["largest_group"]
    lines.append(f"{modality:<14}{rate:>11.2%}{largest:>9}   {levels}".rstrip())
  return "\n".join(lines)
