"""Unique IDs and their trie against loops over tuples."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.quantize.id_trie import build_trie
from mmesid_jax.quantize.item_ids import NO_CODE, append_ids, join_codes, number_shared_codes

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
      assert ids.id_IL[item].tolist() == [*row, *last]


@given(codes)
def test_the_children_of_a_node_are_the_codes_that_follow_it(rows):
  id_IL = number_shared_codes(table(rows), C).id_IL
  trie = build_trie(id_IL)
  found = {}  # item -> its path

  def walk(level, node, path):
    if level == trie.levels:
      found[int(trie.item[node])] = path
      return 1
    first, stop = trie.first_child[level][node : node + 2]
    assert first < stop and stop - first <= trie.most_children[level]
    children = trie.code[level][first:stop].tolist()
    assert children == sorted(set(children))
    items = sum(
      walk(level + 1, child, (*path, code))
      for child, code in zip(range(first, stop), children, strict=True)
    )
    assert trie.leads_to_one_item(level, node) == (items == 1)
    return items

  walk(0, 0, ())
  assert found == {item: tuple(id_IL[item].tolist()) for item in range(1, len(id_IL))}
  assert trie.nodes == tuple(
    len({path[:level] for path in found.values()}) for level in range(trie.levels + 1)
  )


def test_a_trie_of_some_items_holds_no_others():
  trie = build_trie(np.array([[0, 0], [2, 1], [0, 1], [2, 0]]), np.array([1, 3]))
  assert trie.nodes == (1, 1, 2) and trie.item.tolist() == [3, 1]


def test_items_that_share_an_id_are_leaves_side_by_side():
  trie = build_trie(np.array([[0, 0], [2, 1], [0, 1], [2, 1], [2, 0]]))
  assert trie.nodes == (1, 2, 4) and trie.item.tolist() == [2, 4, 1, 3]
  assert trie.path[1:].tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 3], [0, 1, 1]]
  assert trie.first_child[1].tolist() == [0, 1, 4] and trie.code[1].tolist() == [1, 0, 1, 1]
  assert trie.most_children == (2, 3)


@given(codes, st.data())
def test_a_new_item_has_the_id_of_the_last_item_of_its_codes(rows, data):
  new = data.draw(
    st.lists(st.lists(st.integers(0, C - 1), min_size=len(rows[0]), max_size=len(rows[0])))
  )
  ids = number_shared_codes(table(rows), C)
  found = append_ids(ids.id_IL, np.array(new, np.int32).reshape(-1, len(rows[0])))
  np.testing.assert_array_equal(found[: len(rows) + 1], ids.id_IL)
  assert found.dtype == np.int32 and len(found) == 1 + len(rows) + len(new)
  for row, of_new in zip(new, found[len(rows) + 1 :].tolist(), strict=True):
    same = [item for item, known in enumerate(rows, 1) if known == row]
    alone = [*row, NO_CODE][: len(of_new)]
    assert of_new == (ids.id_IL[same[-1]].tolist() if same else alone)


def test_codes_of_several_modalities_take_turns():
  joined = join_codes([np.array([[0, 0], [1, 2]]), np.array([[9, 9], [3, 4]])])
  assert joined.tolist() == [[0, 9, 0, 9], [1, 3, 2, 4]]
