"""Unique IDs and their trie against loops over tuples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.quantize.id_trie import build_trie
from mmesid_jax.quantize.item_ids import NO_CODE, number_shared_codes

C = 3
codes = st.integers(1, 4).flatmap(
  lambda levels: st.lists(
    st.lists(st.integers(0, C - 1), min_size=levels, max_size=levels), min_size=1, max_size=30
  )
)


def table(rows) -> np.ndarray:
  return np.array([[0] * len(rows[0]), *rows])


@given(codes)
def test_items_of_equal_codes_are_numbered_and_others_are_not(rows):
  ids = number_shared_codes(table(rows), C)
  groups = {}
  for item, row in enumerate(rows, 1):
    groups.setdefault(tuple(row), []).append(item)
  most = max(map(len, groups.values()))
  assert ids.sizes == (C,) * len(rows[0]) + ((most,) if most > 1 else ())
  assert ids.shared == sum(len(g) for g in groups.values() if len(g) > 1)
  for row, group in groups.items():
    for number, item in enumerate(group):
      last = [] if most == 1 else [number if len(group) > 1 else NO_CODE]
      assert ids.code_IK[item].tolist() == [*row, *last]


@given(codes)
def test_the_children_of_a_node_are_the_codes_that_follow_it(rows):
  code_IK = number_shared_codes(table(rows), C).code_IK
  trie = build_trie(code_IK)
  found = {}  # item -> its path

  def walk(level, node, path):
    if level == trie.levels:
      found[int(trie.item[node])] = path
      return
    first, stop = trie.first_child[level][node : node + 2]
    assert first < stop and stop - first <= trie.most_children[level]
    children = trie.code[level][first:stop].tolist()
    assert children == sorted(set(children))
    for child, code in zip(range(first, stop), children, strict=True):
      walk(level + 1, child, (*path, code))

  walk(0, 0, ())
  assert found == {item: tuple(code_IK[item].tolist()) for item in range(1, len(code_IK))}
  assert trie.nodes == tuple(
    len({path[:level] for path in found.values()}) for level in range(trie.levels + 1)
  )


def test_a_trie_of_some_items_holds_no_others():
  trie = build_trie(np.array([[0, 0], [2, 1], [0, 1], [2, 0]]), np.array([1, 3]))
  assert trie.nodes == (1, 1, 2) and trie.item.tolist() == [3, 1]


def test_two_items_of_one_id_are_refused():
  with pytest.raises(ValueError, match="items 1 and 3 have the same ID"):
    build_trie(np.array([[0, 0], [2, 1], [0, 1], [2, 1]]))
