"""Tells texts that no file can hold: readers refuse them, so that none is written changed."""

import re
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")
NO_UNICODE = "holds half of a surrogate pair; write the whole character, or none"


def is_unicode(value: Any) -> bool:
  """Whether all texts in a JSON value can be written: the escape \\ud800 without its second half
  makes half of a surrogate pair, which is no character."""
  if isinstance(value, str):
    return value.isascii() or not SURROGATE.search(value)
  if isinstance(value, dict):
    return is_unicode([*value, *value.values()])
  return not isinstance(value, list) or all(map(is_unicode, value))
