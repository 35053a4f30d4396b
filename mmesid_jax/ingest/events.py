"""Events as arrays of user, item, time and rating; keys are replaced by numbers."""

import dataclasses
import datetime
import decimal
import hashlib
import math
import numbers
import re
from array import array
from collections.abc import Iterable

import numpy as np

NO_RATING = math.nan
NANO = 10**9  # nanoseconds of a second
# Larger times are in nanoseconds, microseconds, milliseconds. Seconds reach the year 5138.
UNITS = ((10**17, 1), (10**14, 10**3), (10**11, 10**6))  # and the nanoseconds of each unit
LATEST = 2**62  # larger numbers are not a time in any unit
BELOW_MICROSECONDS = re.compile(r"[.,]\d{6}(\d+)")
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Events:
  """Arrays of events, in the order of their source unless sorted.

  Users and items are numbered from 0 by first appearance.
  """

  user_E: np.ndarray  # int32
  item_E: np.ndarray  # int32
  time_E: np.ndarray | None  # int64, whole seconds since 1970 UTC; None = the source has no times
  nano_E: np.ndarray | None  # int32, nanoseconds after `time_E`; None as above
  rating_E: np.ndarray  # float32, NaN without one
  user_keys: list[str]
  item_keys: list[str]

  def __len__(self) -> int:
    return len(self.user_E)

  def counts(self) -> dict[str, int]:
    """Counts the events, and the users and items that have any."""
    users, items = (int((np.bincount(x_E) > 0).sum()) for x_E in (self.user_E, self.item_E))
    return {"events": len(self), "users": users, "items": items}

  def select(self, keep_E: np.ndarray) -> "Events":
    """Selects events by a mask or by places; users and items keep their numbers."""
    arrays = {
      name: x_E if (x_E := getattr(self, name)) is None else x_E[keep_E]
      for name in ("user_E", "item_E", "time_E", "nano_E", "rating_E")
    }
    return dataclasses.replace(self, **arrays)

  def renumber(self) -> "Events":
    """Numbers the users and items that have events from 0 again, by first appearance."""
    user_E, user_keys = _renumber(self.user_E, self.user_keys)
    item_E, item_keys = _renumber(self.item_E, self.item_keys)
    return dataclasses.replace(
      self, user_E=user_E, item_E=item_E, user_keys=user_keys, item_keys=item_keys
    )

  def sort(self, ties: str = "file") -> "Events":
    """Sorts by user, then time, then what `ties` says.

    ties: "file" = place in the source; "hash" = a hash of the keys of user and item, which does not
    depend on the order of the source and differs from user to user.
    """
    columns = (self.user_E,)
    if self.time_E is not None:
      columns = (self.nano_E, self.time_E, self.user_E)
    found = self.select(np.lexsort(columns))  # lexsort is stable
    if ties == "file" or self.time_E is None:
      return found
    ties_E = found.ties()
    ties_E[:-1] |= ties_E[1:]  # the first of a tie too
    hash_E = np.zeros(len(found), np.uint64)
    hash_E[ties_E] = [
      _hash_keys(found.user_keys[u], found.item_keys[i])
      for u, i in zip(found.user_E[ties_E].tolist(), found.item_E[ties_E].tolist(), strict=True)
    ]
    return found.select(np.lexsort((hash_E, found.nano_E, found.time_E, found.user_E)))

  def ties(self) -> np.ndarray:
    """Returns a mask [E] of events at the same time as the one before, of the same user.

    The events are sorted and have times.
    """
    ties_E = np.zeros(len(self), bool)
    columns = (self.user_E, self.time_E, self.nano_E)
    ties_E[1:] = np.logical_and.reduce([x_E[1:] == x_E[:-1] for x_E in columns])
    return ties_E


def _hash_keys(user: str, item: str) -> int:
  data = f"{len(user)} {user}{item}".encode()  # the length keeps ("a", "bc") and ("ab", "c") apart
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _renumber(x_E: np.ndarray, keys: list[str]) -> tuple[np.ndarray, list[str]]:
  old, first = np.unique(x_E, return_index=True)
  old = old[np.argsort(first)]
  new = np.zeros(len(keys), np.int32)
  new[old] = np.arange(len(old))
  return new[x_E], [keys[i] for i in old.tolist()]


def collect_events(rows: Iterable[tuple[str, str, int | None, float]]) -> Events:
  """Collects rows of (user key, item key, time, rating); all rows have a time, or none has.

  Times are in nanoseconds since 1970 UTC.
  """
  users: dict[str, int] = {}
  items: dict[str, int] = {}
  user_E, item_E, rating_E = array("i"), array("i"), array("f")
  time_E, nano_E = array("q"), array("i")  # apart: the year 9999 in nanoseconds is above 2^63
  for user, item, time, rating in rows:
    user_E.append(users.setdefault(user, len(users)))
    item_E.append(items.setdefault(item, len(items)))
    rating_E.append(rating)
    if time is not None:
      time_E.append(time // NANO)
      nano_E.append(time % NANO)
  has_times = len(time_E) or not len(user_E)
  return Events(
    np.frombuffer(user_E, np.int32),
    np.frombuffer(item_E, np.int32),
    np.frombuffer(time_E, np.int64) if has_times else None,
    np.frombuffer(nano_E, np.int32) if has_times else None,
    np.frombuffer(rating_E, np.float32),
    [*users],
    [*items],
  )


def parse_key(value: object) -> str:
  """Converts the key of a user or item to text.

  Raises ValueError for a missing key, for anything but a text or a whole number, and for unpaired
  surrogates, which cannot be written to a file.
  """
  if isinstance(value, numbers.Real | decimal.Decimal) and not isinstance(value, bool):
    # whole numbers in a column with gaps become floats, which are exact below 2^53
    if value % 1 == 0 and (not isinstance(value, float) or abs(value) < 2**53):
      return str(int(value))
  if not isinstance(value, str) or not value:
    raise ValueError(f"{value!r} as a key; expected a text or a whole number")
  if not value.isascii():
    value.encode()  # UnicodeEncodeError is a ValueError
  return value


def parse_time(value: object) -> int:
  """Converts a time to nanoseconds since 1970 UTC; parts of a second count.

  The time is a number, by its size in seconds, milliseconds, microseconds or nanoseconds; such a
  number as text; a date or time of ISO 8601, in UTC unless it says otherwise; or a datetime object.
  Raises ValueError for anything else.
  """
  if type(value) is int and -UNITS[-1][0] < value < UNITS[-1][0]:  # the usual case
    return value * NANO
  if isinstance(value, str):
    try:
      value = int(value)
    except ValueError:
      return _parse_time_text(value.strip())
  if isinstance(value, datetime.datetime):
    utc = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    microseconds = (utc - EPOCH) // datetime.timedelta(microseconds=1)
    return microseconds * 1_000 + getattr(value, "nanosecond", 0)  # as pandas has them
  if isinstance(value, datetime.date):
    return (value - EPOCH.date()).days * 86_400 * NANO
  if isinstance(value, float):
    value = decimal.Decimal(str(value))  # 0.9 is nine tenths, not the nearest sum of powers of 2
  is_number = isinstance(value, int) and not isinstance(value, bool)
  is_number |= isinstance(value, decimal.Decimal) and value.is_finite()
  if not is_number or not abs(value) < LATEST:
    raise ValueError(
      f"{value!r} is not a time; expected seconds or milliseconds since 1970, or a date"
    )
  unit = next((nanos for beyond, nanos in UNITS if abs(value) >= beyond), NANO)
  return math.floor(value * unit)


def _parse_time_text(text: str) -> int:
  try:
    return parse_time(decimal.Decimal(text))
  except decimal.InvalidOperation:
    pass
  try:
    nanoseconds = parse_time(datetime.datetime.fromisoformat(text))
  except ValueError:
    raise ValueError(
      f"{text[:40]!r} is not a time; expected a number or a date as in 2014-07-23"
    ) from None
  below = BELOW_MICROSECONDS.search(text)  # the library leaves these digits out
  return nanoseconds + (int(below[1].ljust(3, "0")[:3]) if below else 0)


def parse_rating(value: object) -> float:
  """Converts a rating to a number, NaN for a missing one. Raises ValueError for anything else."""
  try:
    return NO_RATING if value is None or value == "" else float(value)
  except (TypeError, ValueError):
    raise ValueError(f"{value!r} as a rating; expected a number") from None
