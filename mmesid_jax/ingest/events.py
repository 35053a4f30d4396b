"""Events as arrays: who met what, when; keys by their numbers."""

import dataclasses
import datetime
import decimal
import math
import numbers
from array import array
from collections.abc import Iterable

import numpy as np

NO_RATING = math.nan
# A time beyond these is in milliseconds, microseconds, nanoseconds: seconds reach the year 5138.
UNITS = ((10**17, 10**9), (10**14, 10**6), (10**11, 10**3))
LATEST = 2**62  # of seconds, for times that no unit explains


@dataclasses.dataclass(frozen=True)
class Events:
  """N events, in the order of their source unless said otherwise. Users and items are numbered from
  0 by first appearance."""

  user_E: np.ndarray  # int32
  item_E: np.ndarray  # int32
  time_E: np.ndarray | None  # int64, seconds since 1970 UTC; None = the source has no times
  rating_E: np.ndarray  # float32, NaN without one
  user_keys: list[str]
  item_keys: list[str]

  def __len__(self) -> int:
    return len(self.user_E)

  def counts(self) -> dict[str, int]:
    """How many events, and how many users and items they are of."""
    seen = {"users": self.user_E, "items": self.item_E}
    return {"events": len(self), **{k: int((np.bincount(v) > 0).sum()) for k, v in seen.items()}}

  def only(self, keep_E: np.ndarray) -> "Events":
    """The events under a mask, or at places; numbers as they are."""
    arrays = {
      name: x_E if (x_E := getattr(self, name)) is None else x_E[keep_E]
      for name in ("user_E", "item_E", "time_E", "rating_E")
    }
    return dataclasses.replace(self, **arrays)

  def renumbered(self) -> "Events":
    """Users and items that still have events, numbered from 0 by first appearance again."""
    user_E, user_keys = _renumbered(self.user_E, self.user_keys)
    item_E, item_keys = _renumbered(self.item_E, self.item_keys)
    return dataclasses.replace(
      self, user_E=user_E, item_E=item_E, user_keys=user_keys, item_keys=item_keys
    )

  def in_order(self) -> "Events":
    """By user, then time, then place in the source."""
    columns = (self.user_E,) if self.time_E is None else (self.time_E, self.user_E)
    return self.only(np.lexsort(columns))  # stable


def _renumbered(x_E: np.ndarray, keys: list[str]) -> tuple[np.ndarray, list[str]]:
  old, first = np.unique(x_E, return_index=True)
  old = old[np.argsort(first)]
  new = np.zeros(len(keys), np.int32)
  new[old] = np.arange(len(old))
  return new[x_E], [keys[i] for i in old.tolist()]


def collect_events(rows: Iterable[tuple[str, str, int | None, float]]) -> Events:
  """Events of rows (user's key, item's key, seconds, rating); of every row or of none the seconds
  are None."""
  users: dict[str, int] = {}
  items: dict[str, int] = {}
  user_E, item_E, time_E, rating_E = array("i"), array("i"), array("q"), array("f")
  for user, item, time, rating in rows:
    user_E.append(users.setdefault(user, len(users)))
    item_E.append(items.setdefault(item, len(items)))
    rating_E.append(rating)
    if time is not None:
      time_E.append(time)
  return Events(
    np.frombuffer(user_E, np.int32),
    np.frombuffer(item_E, np.int32),
    np.frombuffer(time_E, np.int64) if len(time_E) or not len(user_E) else None,
    np.frombuffer(rating_E, np.float32),
    [*users],
    [*items],
  )


def parse_key(value: object) -> str:
  """A user's or item's key as text. Raises ValueError for one that is missing, no key, or half a
  character, which no file could hold."""
  if isinstance(value, numbers.Real | decimal.Decimal) and not isinstance(value, bool):
    # a column of whole numbers with a gap becomes one of floats, exact to this size
    if value % 1 == 0 and (not isinstance(value, float) or abs(value) < 2**53):
      return str(int(value))
  if not isinstance(value, str) or not value:
    raise ValueError(f"{value!r} as a key; expected a text or a whole number")
  if not value.isascii():
    value.encode()  # UnicodeEncodeError is a ValueError
  return value


def parse_time(value: object) -> int:
  """A time as whole seconds since 1970 UTC: numbers, by their size in seconds, milliseconds,
  microseconds or nanoseconds; these as text; dates and times of ISO 8601, UTC where they do not
  say; datetime objects. Raises ValueError for anything else."""
  if type(value) is int and -UNITS[-1][0] < value < UNITS[-1][0]:  # as nearly all are
    return value
  if isinstance(value, str):
    try:
      value = int(value)
    except ValueError:
      value = _of_text(value)
  if isinstance(value, datetime.datetime):
    utc = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    return math.floor(utc.timestamp())
  if isinstance(value, datetime.date):
    return (value - datetime.date(1970, 1, 1)).days * 86_400
  if isinstance(value, decimal.Decimal):
    value = float(value)
  if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LATEST:
    raise ValueError(
      f"{value!r} is no time; expected seconds or milliseconds since 1970, or a date"
    )
  for beyond, per_second in UNITS:
    if abs(value) >= beyond:
      return int(value // per_second)
  return math.floor(value)


def _of_text(text: str) -> object:
  for parse in (float, datetime.datetime.fromisoformat):
    try:
      return parse(text.strip())
    except ValueError:
      continue
  raise ValueError(f"{text[:40]!r} is no time; expected a number or a date as in 2014-07-23")


def parse_rating(value: object) -> float:
  """A rating as a number, NaN for none. Raises ValueError for anything else."""
  try:
    return NO_RATING if value is None or value == "" else float(value)
  except (TypeError, ValueError):
    raise ValueError(f"{value!r} as a rating; expected a number") from None
