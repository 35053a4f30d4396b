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
  _, count = np.unique(code_NL, axis=0, return_counts=True)
  return {"collision_rate": 1 - len(count) / len(code_NL), "largest_group": int(count.max())}


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
