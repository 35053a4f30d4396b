"""Health of codebooks: how evenly codes are used, how many items share an ID, whether the items of
a prefix have the same category, and what each level leaves."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmesid_jax.display.table import format_table
from mmesid_jax.quantize.code_groups import prefix_groups

ENOUGH_USED = 0.9  # share of a level's codes in use from which on it is as it should be


def level_health(code_E: np.ndarray, codes: int) -> dict[str, float]:
  """One level: share of codes in use, number of dead codes, perplexity, Gini coefficient.

  A dead code has no items. perplexity = exp(-sum p log p), at most `codes`. Gini of the number of
  items of every code, dead ones included: 0 if all codes have the same number, 1 - 1 / codes if one
  code has all items.
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
  """Collision rate = 1 - distinct IDs / items, and the number of items of the most shared ID."""
  _, count = np.unique(prefix_groups(code_EL)[:, -1], return_counts=True)
  return {"collision_rate": 1 - len(count) / len(code_EL), "largest_group": int(count.max())}


def entropy(group_E: np.ndarray) -> float:
  """Entropy in bits of the groups' sizes: log2 of the number of equal groups as informative."""
  p = np.unique(group_E, return_counts=True)[1] / len(group_E)
  return float(-(p * np.log2(p)).sum()) + 0.0  # no -0


def purity(group_E: np.ndarray, category_E: np.ndarray) -> float:
  """Share of items that have the most frequent category of their group; int arrays from 0."""
  categories = int(category_E.max()) + 1
  pair, count = np.unique(group_E * categories + category_E, return_counts=True)
  largest = np.zeros(int(group_E.max()) + 1, np.int64)
  np.maximum.at(largest, pair // categories, count)
  return float(largest.sum() / len(group_E))


def _purities(group_EL: np.ndarray, categories: Sequence[str | None]) -> dict[str, object]:
  """Purities by length of the prefix; {} when no category is known.

  Groups of one item are pure whatever they mean. To compare with: the purity of the same groups
  filled at random, and the share of the largest category, which is that of one group of all items.
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


def measure_health(
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


def codebook_table(report: Mapping[str, Mapping]) -> str:
  """Two text tables of `measure_health`: a row for every level, and the collisions of every ID."""
  pure = any("purity" in figures for figures in report.values())
  header = ["codes", "level", "usage", "dead", "perplexity", "Gini", "entropy"]
  levels = []
  for modality, figures in report.items():
    for l, level in enumerate(figures.get("levels", [])):  # noqa: E741
      row = [modality if not l else "", l + 1, f"{level['usage']:.1%}", level["dead"]]
      row += [f"{level['perplexity']:.1f}", f"{level['gini']:.2f}"]
      row.append(f"{figures['entropy'][l]:.1f} bit")
      if "purity" in figures:
        row += [f"{figures['purity'][l]:.1%}", f"{figures['purity_by_chance'][l]:.1%}"]
      levels.append(row)
  ids = [
    [modality, f"{figures['collision_rate']:.2%}", figures["largest_group"]]
    for modality, figures in report.items()
  ]
  note = "entropy, purity: of the codes from the first level to this one"
  for figures in report.values():
    if "largest_category" in figures:
      note += f"; the largest category has {figures['largest_category']:.1%} of the items"
      break
  return "\n".join(
    [
      format_table(header + (["purity", "by chance"] if pure else []), levels),
      format_table(["IDs", "collisions", "largest"], ids),
      note,
    ]
  )


def describe_dead_codes(report: Mapping[str, Mapping]) -> str | None:
  """Names the levels of `measure_health` of which too many codes are dead, and what helps; None
  where there is no such level."""
  found = [
    f"{level['dead']} codes of level {number} of {modality} ({1 - level['usage']:.0%})"
    for modality, figures in report.items()
    for number, level in enumerate(figures.get("levels", []), 1)
    if level["usage"] < ENOUGH_USED
  ]
  if not found:
    return None
  return (
    f"{', '.join(found)} have no items; try a larger --config.semantic_ids.epochs or a smaller "
    "--config.semantic_ids.quantizer.codes, and look at evaluate --stage=semantic_ids"
  )


def residual_norms(z_ED: np.ndarray, code_EL: np.ndarray, book_LCD: np.ndarray) -> list[float]:
  """|residual| / |z|, the mean over the items, after level 0 (1.0), 1 .. L; z: encoded vectors."""
  residual_ED = np.array(z_ED, np.float32)
  size_E = np.maximum(np.linalg.norm(residual_ED, axis=1), 1e-12)
  norms = [1.0]
  for code_E, book_CD in zip(code_EL.T, book_LCD, strict=True):
    residual_ED -= book_CD[code_E]
    norms.append(float((np.linalg.norm(residual_ED, axis=1) / size_E).mean()))
  return norms
