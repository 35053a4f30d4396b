"""Keys of users and items: read as the folder keeps them, or refused by file and line."""

import json

import pytest

from mmesid_jax.data.folder import keys
from mmesid_jax.errors import UserError

KEYS = ["B004", "é ü", "\u2028", "", '"\\']


def folder(tmp_path, lines, name="items.jsonl"):
  (tmp_path / name).write_text("".join(line + "\n" for line in lines))
  return tmp_path


def test_keys_are_read_in_order(tmp_path):
  folder(
    tmp_path, [json.dumps({"item_id": n, "key": k, "asin": k + "!"}) for n, k in enumerate(KEYS, 1)]
  )
  folder(tmp_path, [json.dumps({"key": k}) for k in KEYS], "users.jsonl")
  assert keys.item_keys(tmp_path) == keys.kept_item_keys(tmp_path) == KEYS
  assert keys.kept_item_keys(tmp_path, "asin") == [k + "!" for k in KEYS]
  assert keys.user_keys(tmp_path) == keys.kept_user_keys(tmp_path, 5) == KEYS


def test_a_folder_may_keep_none_unless_they_are_asked_for(tmp_path):
  assert keys.kept_item_keys(tmp_path) is None and keys.kept_user_keys(tmp_path, 5) is None
  folder(tmp_path, ['{"item_id": 1, "asin": "B004"}'])
  assert keys.kept_item_keys(tmp_path) is None
  assert keys.kept_item_keys(tmp_path, "asin") == ["B004"]
  with pytest.raises(UserError, match=r"items.jsonl:1: no text under 'ean'.*asin, item_id"):
    keys.kept_item_keys(tmp_path, "ean")
  with pytest.raises(UserError, match=r"users.jsonl: no such file"):
    keys.user_keys(tmp_path)


@pytest.mark.parametrize(
  ("line", "says"),
  [
    ("{", ":2: not JSON"),
    ("[]", ":2: no text under 'key'.*list"),
    ('{"item_id": 2}', ":2: no text under 'key'"),
    ('{"key": true}', ":2: no text under 'key'"),
    ('{"key": "B1"}', ":2: key 'B1' is already on line 1"),
    ('{"key": "\\ud800"}', ":2: key holds half of a surrogate pair; write the"),
    ('{"key": "B2", "more": [{"\\udc00": 1}]}', ":2: more holds half of a surrogate pair"),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
  with pytest.raises(UserError, match=f"items.jsonl{says}"):
    keys.kept_item_keys(folder(tmp_path, ['{"key": "B1"}', line]))


def test_a_bad_first_line_is_no_folder_without_keys(tmp_path):
  for line in ("{", "[]", '"key"'):
    with pytest.raises(UserError, match=r"items.jsonl:1: "):
      keys.kept_item_keys(folder(tmp_path, [line]))


def test_users_are_counted_before_the_first_is_read(tmp_path):
  folder(tmp_path, ['{"key": "a"}', '{"key": "b"}'], "users.jsonl")
  with pytest.raises(UserError, match=r"users.jsonl: 2 lines; expected one for each of the 3"):
    keys.kept_user_keys(tmp_path, 3)
