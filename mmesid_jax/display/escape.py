"""Makes text from data safe to print: a terminal obeys the control characters in it."""

import re

# Control characters of ASCII (not tab and newline) and of Latin-1, marks that turn the direction of
# text, separators of lines, and halves of surrogate pairs, which no terminal can be sent.
_UNSAFE = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_UNSAFE_IN_A_LINE = re.compile(f"{_UNSAFE.pattern}|[\t\n]")


def escape_text(text: str) -> str:
  r"""The text with unsafe characters as Python writes them, such as \x1b; lines and tabs stay."""
  return _UNSAFE.sub(_written, text)


def escape_line(text: str) -> str:
  """`escape_text` for a title, a key or a cell, whose newlines and tabs would move others."""
  return _UNSAFE_IN_A_LINE.sub(_written, text)


def _written(match: re.Match) -> str:
  return ascii(match[0])[1:-1]
