"""Users and items as TFDS's examples: the lines of a prepared folder, there and back.

Texts are bytes of UTF-8, "" and [] where nothing is known: `prepare` writes null there and never an
empty text, and no half characters.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmesid_jax.data.folder.keys import KEY
from mmesid_jax.data.folder.writer import item_line, sequence_line, user_line

NAME, USERS, ITEMS = "interactions", "users", "items"  # the dataset; its configurations and splits
TEXTS, LISTS = ("title", "brand", "description"), ("categories", "images")


def user_example(sequence: bytes, user: bytes, times: Sequence[int] | None) -> dict[str, Any]:
  """Of a line of sequences.txt and the one of users.jsonl. Raises ValueError, which says what they
  should be, for lines that `user_lines` would not give back."""
  try:
    number, *items = map(int, sequence.split())
    example = {"user_id": number, KEY: _encoded(json.loads(user)[KEY]), "items": items}
    again = example_to_user_lines(example)
  except (ValueError, LookupError, TypeError, AttributeError):
    raise ValueError("expected `user item item ...`, and an object with user_id and key") from None
  _check_same((sequence, user), again)
  return example if times is None else {**example, "times": times}


def example_to_user_lines(example: Mapping[str, Any]) -> tuple[bytes, bytes]:
  """Of sequences.txt and users.jsonl."""
  number = example["user_id"]
  return sequence_line(number, example["items"]), user_line(number, _decoded(example[KEY]))


def item_example(line: bytes) -> dict[str, Any]:
  """Of a line of items.jsonl. Raises ValueError, which says what it should be, for one that
  `line_of_item` would not give back."""
  try:
    item = json.loads(line)
    example = {
      "item_id": item["item_id"],
      KEY: _encoded(item[KEY]),
      **{name: _encoded(item[name] or "") for name in TEXTS},
      **{name: [*map(_encoded, item[name] or ())] for name in LISTS},
    }
    again = example_to_item_line(example)
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    fields = ", ".join(("item_id", KEY, *TEXTS, *LISTS))
    raise ValueError(f"expected an object with {fields}") from None
  _check_same((line,), (again,))
  return example


def example_to_item_line(example: Mapping[str, Any]) -> bytes:
  """Of items.jsonl."""
  texts = {name: _decoded(example[name]) or None for name in TEXTS}
  lists = {name: [*map(_decoded, example[name])] or None for name in LISTS}
  return item_line(example["item_id"], _decoded(example[KEY]), texts | lists)


def _encoded(text: str) -> bytes:
  return text.encode(errors="replace")


def _decoded(text: bytes) -> str:
  return text.decode()


def _check_same(lines: Sequence[bytes], again: Sequence[bytes]) -> None:
  for line, expected in zip(lines, again, strict=True):
    if line != expected:
      place = next(
        (i for i, (a, b) in enumerate(zip(line, expected, strict=False)) if a != b),
        min(len(line), len(expected)),
      )
      near = slice(max(place - 20, 0), place + 20)
      raise ValueError(f"holds {line[near]!r} where prepare writes {expected[near]!r}")
