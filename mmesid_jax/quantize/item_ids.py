"""One semantic ID per item: the quantizer's codes and, where items share theirs, a number."""

from typing import NamedTuple

import numpy as np

NO_CODE = -1  # on the last level of an item that shares its codes with no other


class ItemIds(NamedTuple):
  """IDs that no two items share, the input of `id_trie.build_trie`."""

  code_IK: np.ndarray  # int32; row 0 is padding
  sizes: tuple[int, ...]  # how many codes each level has
  shared: int  # number of items whose codes another item has, too


def number_shared_codes(code_IL: np.ndarray, codes: int) -> ItemIds:
  """The codes as they are where all items differ, else with one level more.

  On that level items of equal codes are numbered from 0, in the order of their ids, and all others
  have NO_CODE. Its size is that of the largest group. Source: Rajput et al. 2023 (TIGER), section
  3.1, which gives every item a number.

  Args:
    code_IL: integers in [0, codes); row 0 is padding.
  """
  items = len(code_IL) - 1
  _, group_E, sizes = np.unique(code_IL[1:], axis=0, return_inverse=True, return_counts=True)
  group_E = group_E.reshape(items)
  code_IL = code_IL.astype(np.int32)
  levels = (codes,) * code_IL.shape[1]
  if sizes.max(initial=1) == 1:
    return ItemIds(code_IL, levels, 0)
  order = np.argsort(group_E, kind="stable")
  first = np.cumsum(sizes) - sizes
  number_I = np.full(items + 1, NO_CODE, np.int32)
  number_I[1 + order] = np.arange(items) - np.repeat(first, sizes)
  number_I[1:][sizes[group_E] == 1] = NO_CODE
  code_IK = np.concatenate([code_IL, number_I[:, None]], axis=1)
  return ItemIds(code_IK, (*levels, int(sizes.max())), int(sizes[sizes > 1].sum()))
