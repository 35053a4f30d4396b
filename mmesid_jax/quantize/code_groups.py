"""Groups of items whose codes begin alike."""

import numpy as np


def prefix_groups(code_EL: np.ndarray) -> np.ndarray:
  """int64 [E, L]: column l numbers the items' first l + 1 codes from 0 without gaps; equal
  numbers for equal codes. Codes are not negative."""
  group_E, groups = np.zeros(len(code_EL), np.int64), []
  for code_E in code_EL.astype(np.int64).T:
    pair_E = group_E * (code_E.max(initial=0) + 1) + code_E
    group_E = np.unique(pair_E, return_inverse=True)[1].reshape(-1)
    groups.append(group_E)
  return np.stack(groups, axis=1)
