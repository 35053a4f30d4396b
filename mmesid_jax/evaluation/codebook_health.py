"""Are the semantic IDs any good: how evenly codes are used, how many items share one ID, whether
items of one prefix are of one kind, what the levels leave."""

from collections.abc import Mapping, Sequence

import numpy as np


def level_health(code_E: np.ndarray, codes: int) -> dict[str, float]:
  """One level: share of codes in use, how many are dead, perplexity, Gini coefficient.

  perplexity = exp(-sum p log p), at most `codes`. Gini of the codes' counts, dead codes among them:
  0 when all codes have as many items, 1 - 1 / codes when one code has all.
  """
  count_C = np.bincount(code_E, minlength=codes)
  p_C = count_C / max(len(code_E), 1)
  used_C = p_C[p_C > 0]
  rank_C = np.arange(1, codes + 1)
  return {
    "usage": float((p_C > 0).mean()),
    "dead": int((count_C == 0).sum()),
    "perplexity": float(np.exp(-(used_C * np.log(used_C)).sum())),
    "gini": float(((2 * rank_C - codes - 1) * np.sort(p_C)).sum() / codes),
  }


def collisions(code_EL: np.ndarray) -> dict[str, float]:
  """collision rate = 1 - distinct IDs / items, and how many items the most shared ID has."""
  _, count = np.unique(prefix_groups(code_EL)[:, -1], return_counts=True)
  return {"collision_rate": 1 - len(count) / len(code_EL), "largest_group": int(count.max())}


def prefix_groups(code_EL: np.ndarray) -> np.ndarray:
  """int64 [E, L]: column l numbers the items' first l + 1 codes, from 0 on without gaps; equal
  numbers for equal codes."""
  group_E, groups = np.zeros(len(code_EL), np.int64), []
  for code_E in code_EL.astype(np.int64).T:
    group_E = np.unique(group_E * (code_E.max() + 1) + code_E, return_inverse=True)[1]
    groups.append(group_E)
  return np.stack(groups, axis=1)


def entropy(group_E: np.ndarray) -> float:
  """Bits of the groups' distribution: log2 of how many equal groups would tell as much."""
  p = np.unique(group_E, return_counts=True)[1] / len(group_E)
  return float(-(p * np.log2(p)).sum()) + 0.0  # no -0


def purity(group_E: np.ndarray, category_E: np.ndarray) -> float:
  """Share of the items whose category is the most frequent one of their group; int arrays from 0
  on."""
  categories = int(category_E.max()) + 1
  pair, count = np.unique(group_E * categories + category_E, return_counts=True)
  largest = np.zeros(int(group_E.max()) + 1, np.int64)
  np.maximum.at(largest, pair // categories, count)
  return float(largest.sum() / len(group_E))


def _purities(group_EL: np.ndarray, categories: Sequence[str | None]) -> dict[str, object]:
  """By length of the prefix; {} when no category is known.

  Groups of one item are pure whatever they mean, so what the same groups have when they are filled
  at random stands beside it; and the share of the largest category, what all items as one group
  have.
  """
  known = np.array([c is not None for c in categories])
  if not known.any():
    return {}
  category_E = np.unique([c for c in categories if c is not None], return_inverse=True)[1]
  shuffled_E = np.random.default_rng(0).permutation(category_E)
  groups = group_EL[known].T
  return {
    "purity": [purity(group_E, category_E) for group_E in groups],
    "purity_by_chance": [purity(group_E, shuffled_E) for group_E in groups],
    "largest_category": purity(np.zeros_like(category_E), category_E),
  }


def health(
  codes: Mapping[str, np.ndarray], num_codes: int, categories: Sequence[str | None] = ()
) -> dict[str, dict]:
  """modality -> {"levels": [of level_health], collisions, "entropy": [...]}, and "joint":
  collisions of all modalities' codes together.

  codes: modality -> int [E, L], items only (no padding row). `entropy` is in bits, by the length of
  the prefix, 1 to L. categories: of the E items, None where not known; with them also `purity` and
  `purity_by_chance` by the length of the prefix, and `largest_category`, over the items whose
  category is known. Raises ValueError for another number of categories.
  """
  report = {}
  for m, code_EL in codes.items():
    if categories and len(categories) != len(code_EL):
      raise ValueError(f"{len(categories)} categories of {len(code_EL)} items")
    group_EL = prefix_groups(code_EL)
    report[m] = {
      "levels": [level_health(level, num_codes) for level in code_EL.T],
      **collisions(code_EL),
      "entropy": [entropy(group_E) for group_E in group_EL.T],
      **(_purities(group_EL, categories) if categories else {}),
    }
  return report | {"joint": collisions(np.concatenate(list(codes.values()), axis=1))}


def table(report: Mapping[str, Mapping]) -> str:
  """Two text tables: a row a level of every modality, and a row an ID's collisions."""
  pure = any("purity" in found for found in report.values())
  lines = [
    f"{'codes':<14}{'level':>6}{'usage':>8}{'dead':>6}{'perplexity':>12}{'Gini':>7}{'entropy':>10}"
    + (f"{'purity':>9}{'by chance':>11}" if pure else "")
  ]
  for modality, found in report.items():
    for l, level in enumerate(found.get("levels", [])):  # noqa: E741
      line = (
        f"{modality if not l else '':<14}{l + 1:>6}{level['usage']:>8.1%}{level['dead']:>6}"
        f"{level['perplexity']:>12.1f}{level['gini']:>7.2f}{found['entropy'][l]:>6.1f} bit"
      )
      if "purity" in found:
        line += f"{found['purity'][l]:>9.1%}{found['purity_by_chance'][l]:>11.1%}"
      lines.append(line)
  lines.append(f"{'IDs':<14}{'collisions':>11}{'largest':>9}")
  for modality, found in report.items():
    lines.append(f"{modality:<14}{found['collision_rate']:>11.2%}{found['largest_group']:>9}")
  about = "entropy, purity: of the codes from the first level to this one"
  for found in report.values():
    if "largest_category" in found:
      about += f"; the largest category has {found['largest_category']:.1%} of the items"
      break
  return "\n".join([*lines, about])


def residual_norms(z_ED: np.ndarray, code_EL: np.ndarray, book_LCD: np.ndarray) -> list[float]:
  """What is left of the encoded vectors z behind level 0 (1.0), 1 .. L: |residual| / |z|, the mean
  over the items."""
  residual_ED = np.array(z_ED, np.float32)
  size_E = np.maximum(np.linalg.norm(residual_ED, axis=1), 1e-12)
  norms = [1.0]
  for code_E, book_CD in zip(code_EL.T, book_LCD, strict=True):
    residual_ED -= book_CD[code_E]
    norms.append(float((np.linalg.norm(residual_ED, axis=1) / size_E).mean()))
  return norms
