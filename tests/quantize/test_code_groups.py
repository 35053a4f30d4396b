"""Items whose codes begin alike."""

import numpy as np

from mmesid_jax.quantize.code_groups import prefix_groups


def test_prefixes_are_told_apart_by_all_their_codes():
  """(0, 1) and (1, 0) differ, as do (0, 11) and (1, 1) in any way of writing them in one number."""
  code_NL = np.array([[0, 1], [1, 0], [0, 11], [1, 1], [0, 1]], np.int32)
  group_NL = prefix_groups(code_NL)
  assert group_NL[:, 0].tolist() == [0, 1, 0, 1, 0]
  assert group_NL[:, 1].tolist() == [0, 2, 1, 3, 0]


def test_prefixes_do_not_overflow():
  rng = np.random.default_rng(0)
  code_NL = rng.integers(60_000, size=(500, 12)).astype(np.int32)  # 60,000^12 is past 2^64
  assert (prefix_groups(code_NL)[:, -1].max() + 1) == len(np.unique(code_NL, axis=0))
