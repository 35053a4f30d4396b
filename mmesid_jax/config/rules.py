"""Kinds of rules: which values a configuration key may have, and the words for them."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
  """Which values a key may have, and the words for it in "expected ..."."""

  accepts: Callable[[Any], bool]
  text: str


def at_least(low: float) -> Rule:
  return Rule(lambda x: x >= low, f"a number >= {low}")


def whole(low: int, high: int = 2**31 - 1) -> Rule:
  """Whole numbers; by default up to the largest int32, which arrays of ids and counts hold."""
  return Rule(lambda x: low <= x <= high, f"a whole number from {low} to {high:,}")


def above_zero() -> Rule:
  return Rule(lambda x: x > 0, "a number > 0")


def fraction() -> Rule:
  return Rule(lambda x: 0 <= x < 1, "a number in [0, 1)")


def one_of(*names: str) -> Rule:
  return Rule(lambda x: x in names, "one of " + ", ".join(names))


def some_of(*names: str) -> Rule:
  return list_of(lambda x: x in names, "a non-empty tuple out of " + ", ".join(names))


def list_of(accepts: Callable[[Any], bool], text: str) -> Rule:
  return Rule(lambda x: len(x) > 0 and all(accepts(v) for v in x), text)


def list_of_whole(low: int, high: int = 2**31 - 1) -> Rule:
  one = whole(low, high)
  return list_of(one.accepts, f"a non-empty tuple, each {one.text}")


def true_or_false() -> Rule:
  return Rule(lambda x: isinstance(x, bool), "true or false")


def words(text: str) -> Rule:
  """Any text: files are looked for when they are read."""
  return Rule(lambda x: isinstance(x, str), text)
