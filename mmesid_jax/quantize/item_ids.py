"""One semantic ID per item: the quantizer's codes and, where items share theirs, a number."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmesid_jax.quantize.code_groups import prefix_groups

# In a code table: adds nothing to an item's token. On the last level of an ID: no number, as no
# other item has these codes.
NO_CODE = -1


class ItemIds(NamedTuple):
  """IDs that no two items share, the input of `id_trie.build_trie`."""

  id_IL: np.ndarray  # int32; row 0 is padding
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
  code_EL = code_IL[1:]
  group_E = prefix_groups(code_EL)[:, -1]
  sizes = np.bincount(group_E)
  levels = (codes,) * code_IL.shape[1]
  if sizes.max(initial=1) == 1:
    return ItemIds(code_IL.astype(np.int32), levels, 0)
  order_E = np.argsort(group_E, kind="stable")
  number_E = np.empty(len(code_EL), np.int32)
  number_E[order_E] = np.arange(len(code_EL)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  number_E[sizes[group_E] == 1] = NO_CODE
  ids = np.column_stack([code_IL, np.append(NO_CODE, number_E)]).astype(np.int32)
  return ItemIds(ids, (*levels, int(sizes.max())), int(sizes[sizes > 1].sum()))


def join_codes(codes: Sequence[np.ndarray]) -> np.ndarray:
  """[I, modalities x L] of codes [I, L] by modality: the first of all, then the second, ..."""
  return np.stack(codes, axis=2).reshape(len(codes[0]), -1)


def append_ids(id_IL: np.ndarray, new_codes: np.ndarray) -> np.ndarray:
  """IDs of known items, and of more items with the codes [new items, levels that are codes], int32.

  An item whose codes others have gets the ID of the last of them: nothing was learned that could
  tell the two apart. Where the IDs have a number and nobody has the codes, there is none.
  """
  levels = new_codes.shape[1]
  if levels == id_IL.shape[1]:
    return np.concatenate([id_IL, new_codes]).astype(np.int32)
  codes = np.concatenate([id_IL[1:, :levels], new_codes])
  group_E = prefix_groups(codes - NO_CODE)[:, -1]  # an item may have no codes at all
  known, new = np.split(group_E, [len(id_IL) - 1])
  last = np.full(len(codes), NO_CODE)  # number, by group
  np.maximum.at(last, known, id_IL[1:, levels])
  return np.concatenate([id_IL, np.column_stack([new_codes, last[new]])]).astype(np.int32)
