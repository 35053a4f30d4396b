"""The one line that says which setting of an existing file differs."""

import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.files.provenance import check_same_settings, describe_differences, is_made_from


@pytest.mark.parametrize(
  "before, now, text",
  [
    ({"a": 1}, {"a": 1}, ""),
    ({"a": 1, "b": None}, {"a": 1}, ""),
    ({"b": "x", "a": 1}, {"b": "y", "a": 1}, "b was 'x', now 'y'"),
    ({"a": 1}, {"b": 2}, "a was 1, now not set, b was not set, now 2"),
    (dict.fromkeys("abcde", 1), {}, " and 2 more"),
  ],
)
def test_differences_are_named(before, now, text):
  described = describe_differences(before, now)
  assert described.endswith(text) and bool(described) == bool(text)


def test_a_difference_is_one_line_with_a_remedy():
  with pytest.raises(UserError, match=r"^f: of another: a was the default, now 2; delete it$"):
    check_same_settings(
      {}, {"a": 2}, label="f: of another", remedy="delete it", missing="the default"
    )


def test_a_mark_says_whether_anything_changed(tmp_path):
  mark = tmp_path / "made_from.json"
  assert not is_made_from(mark, {"a": (1, 2)})
  mark.write_text('{"a": [1, 2]}')
  assert is_made_from(mark, {"a": (1, 2)})
  assert not is_made_from(mark, {"a": (1, 3)})
  mark.write_text('{"a": [1,')
  assert not is_made_from(mark, {"a": (1, 2)})


def test_the_order_of_keys_does_not_change_a_digest():
  assert json_sha256({"a": 1, "b": 2}) == json_sha256({"b": 2, "a": 1}) != json_sha256({"a": 1})
