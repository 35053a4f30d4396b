"""Converts the lines of a prepared folder to examples of TFDS and back.

Texts are UTF-8 bytes, and "" or [] where nothing is known. That is unambiguous: `prepare` writes
null there, and never an empty text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmesid_jax.data.folder.keys import KEY
from mmesid_jax.data.folder.writer import item_line, sequence_line, user_line
from mmesid_jax.files.readers import parse_json

NAME = "interactions"  # of the dataset
USERS_CONFIG, ITEMS_CONFIG = "users", "items"  # its configurations, each with one split
TEXTS, LISTS = ("title", "brand", "description"), ("categories", "images")


def user_example(sequence: bytes, user: bytes, times: Sequence[int] | None) -> dict[str, Any]:
  """Converts a line of sequences.txt, the line of users.jsonl and the user's times to an example.

  Raises ValueError, which says what was expected, for lines that `example_to_user_lines` would not
  give back.
  """
  try:
    number, *items = map(int, sequence.split())
    example = {"user_id": number, KEY: _encoded(parse_json(user)[KEY]), "items": items}
    restored = example_to_user_lines(example)
  except (ValueError, LookupError, TypeError, AttributeError):
    raise ValueError(
      "expected `user item item ...`, and an object with user_id and key, a Unicode text"
    ) from None
  _check_same((sequence, user), restored)
  return example if times is None else {**example, "times": times}


def example_to_user_lines(example: Mapping[str, Any]) -> tuple[bytes, bytes]:
  """Converts an example back to its lines of sequences.txt and users.jsonl."""
  number = example["user_id"]
  return sequence_line(number, example["items"]), user_line(number, _decoded(example[KEY]))


def item_example(line: bytes) -> dict[str, Any]:
  """Converts a line of items.jsonl to an example.

  Raises ValueError, which says what was expected, for a line that `example_to_item_line` would not
  give back.
  """
  try:
    item = parse_json(line)
    example = {
      "item_id": item["item_id"],
      KEY: _encoded(item[KEY]),
      **{name: _encoded(item[name] or "") for name in TEXTS},
      **{name: [*map(_encoded, item[name] or ())] for name in LISTS},
    }
    restored = example_to_item_line(example)
  except (ValueError, LookupError, TypeError, AttributeError):
    fields = ", ".join(("item_id", KEY, *TEXTS, *LISTS))
    raise ValueError(f"expected an object with {fields}, of Unicode texts") from None
  _check_same((line,), (restored,))
  return example


def example_to_item_line(example: Mapping[str, Any]) -> bytes:
  """Converts an example back to its line of items.jsonl."""
  texts = {name: _decoded(example[name]) or None for name in TEXTS}
  lists = {name: [*map(_decoded, example[name])] or None for name in LISTS}
  return item_line(example["item_id"], _decoded(example[KEY]), texts | lists)


def _encoded(text: str) -> bytes:
  return text.encode()


def _decoded(text: bytes) -> str:
  return text.decode()


def _check_same(lines: Sequence[bytes], restored: Sequence[bytes]) -> None:
  for line, expected in zip(lines, restored, strict=True):
    if line != expected:
      place = next(
        (i for i, (a, b) in enumerate(zip(line, expected, strict=False)) if a != b),
        min(len(line), len(expected)),
      )
      near = slice(max(place - 20, 0), place + 20)
      raise ValueError(f"holds {line[near]!r} where prepare writes {expected[near]!r}")
