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

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.unicode_text import NO_UNICODE, is_unicode

NO_RATING = math.nan
NANO = 10**9  # nanoseconds of a second
# Name, number in a second, and smallest time of each unit. Seconds reach the year 5138.
UNITS = (
  ("nanoseconds", 10**9, 10**17),
  ("microseconds", 10**6, 10**14),
  ("milliseconds", 10**3, 10**11),
  ("seconds", 1, 0),
)
LATEST = 2**62  # larger numbers are not a time in any unit
DATES = 2**62 + 2**61  # added to the seconds of a date, which then are larger than any number's
YEAR_9999 = 253_402_300_799  # its last second
NOT_SECONDS = 10**8, 4 * 10**9  # 1973 to 2096: times of this size are seconds, not milliseconds
# Digits of a date without hyphens, by what it is multiplied with for digits down to seconds.
COMPACT = {8: 10**6, 12: 10**2, 14: 1}
Row = tuple[str, str, int | None, float]  # user key, item key, time as `parse_time` has it, rating
FLOATS = float | np.floating
KEY_DIGITS = 100  # of a decimal that is a key; Parquet has up to 76
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


def collect_events(files: Iterable[tuple[object, Iterable[Row]]]) -> Events:
  """Collects the rows of files, each with its name; all rows have a time, or none has.

  The numbers of a file that are times have one unit, which their sizes tell. Raises UserError for a
  file whose numbers have two.
  """
  users: dict[str, int] = {}
  items: dict[str, int] = {}
  user_E, item_E, rating_E = array("i"), array("i"), array("f")
  time_E, nano_E = array("q"), array("i")  # apart: the year 9999 in nanoseconds is above 2^63
  for name, rows in files:
    start = len(time_E)
    for user, item, time, rating in rows:
      user_E.append(users.setdefault(user, len(users)))
      item_E.append(items.setdefault(item, len(items)))
      rating_E.append(rating)
      if time is not None:
        time_E.append(time // NANO)
        nano_E.append(time % NANO)
    _scale_times(
      name, np.frombuffer(time_E, np.int64)[start:], np.frombuffer(nano_E, np.int32)[start:]
    )
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


def _scale_times(name: object, time_E: np.ndarray, nano_E: np.ndarray) -> None:
  """Makes seconds of the times of one file, in place. Raises UserError for two units."""
  dates_E = time_E >= LATEST
  if dates_E.any():
    time_E[dates_E] -= DATES
    numbers_E = np.flatnonzero(~dates_E)
    part = time_E[numbers_E], nano_E[numbers_E]
    _scale_numbers(name, *part)
    time_E[numbers_E], nano_E[numbers_E] = part
  else:
    _scale_numbers(name, time_E, nano_E)


def _scale_numbers(name: object, time_E: np.ndarray, nano_E: np.ndarray) -> None:
  """The same for numbers; the one in the middle by size tells the unit of all."""
  if not len(time_E):
    return
  size_E = np.abs(time_E)
  middle = int(np.partition(size_E, len(size_E) // 2)[len(size_E) // 2])
  if _replace_compact_dates(name, time_E, nano_E, middle):
    return
  unit, per_second, _ = next(found for found in UNITS if middle >= found[2])
  other_E = size_E > (YEAR_9999 + 1) * per_second - 1
  for _, coarser, _ in UNITS:
    if coarser < per_second:
      other_E |= (size_E >= NOT_SECONDS[0] * coarser) & (size_E < NOT_SECONDS[1] * coarser)
  if other_E.any():
    raise UserError(
      f"{name}: the times are in {unit}, as most are, but {time_E[other_E][0]} has the size of "
      "another unit; write all in one unit"
    )
  if per_second > 1:
    nano_E[:] = (time_E % per_second * NANO + nano_E) // per_second
    time_E //= per_second


def _replace_compact_dates(
  name: object, time_E: np.ndarray, nano_E: np.ndarray, middle: int
) -> bool:
  """Reads numbers such as 20240131 as dates if all of them are; says whether.

  `middle` is one of them. Dates are of 1970 to 2100; in the place of seconds there may be 4 or 6
  more digits, for hours, minutes and seconds. Raises UserError if most are dates, but not all.
  """
  power = COMPACT.get(len(str(middle)))
  if power is None or not 1970 <= middle * power // 10**10 <= 2100:
    return False
  parts = []
  rest_E = np.clip(time_E, 0, 10**14 // power - 1) * power
  for base in (100, 100, 100, 100, 100):
    rest_E, part_E = np.divmod(rest_E, base)
    parts.append(part_E)
  second_E, minute_E, hour_E, day_E, month_E = parts
  months_E = ((rest_E - 1970) * 12 + month_E - 1).astype("datetime64[M]")
  days_E = months_E.astype("datetime64[D]") + (day_E - 1)
  good_E = (rest_E >= 1970) & (rest_E <= 2100) & (month_E >= 1) & (month_E <= 12)
  good_E &= (day_E >= 1) & (days_E.astype("datetime64[M]") == months_E)
  good_E &= (hour_E < 24) & (minute_E < 60) & (second_E < 60) & (nano_E == 0)
  if 2 * good_E.sum() < len(good_E):
    return False
  first = time_E[good_E][0]
  if not good_E.all():
    raise UserError(
      f"{name}: times such as {first} look like dates, but {time_E[~good_E][0]} does not; write "
      "dates as 2024-01-31"
    )
  seconds_E = hour_E * 3600 + minute_E * 60 + second_E
  time_E[:] = days_E.astype("datetime64[s]").astype(np.int64) + seconds_E
  date = str(np.datetime64(int(time_E[0]), "s")).replace("T", " ")
  reporter.info(f"{name}: times such as {first} are read as dates, {date}")
  return True


def parse_key(value: object) -> str:
  """Converts the key of a user or item to text.

  Raises ValueError for a missing key, for anything but a text or a whole number, and for a text
  that is not Unicode.
  """
  if _is_whole(value):
    return str(int(value))
  if not isinstance(value, str) or not value:
    raise ValueError(f"{value!r} as a key; expected a text or a whole number")
  if not is_unicode(value):
    raise ValueError(f"{value!r} as a key {NO_UNICODE}")
  return value


def _is_whole(value: object) -> bool:
  """Whether a value is a whole number that is exact."""
  if isinstance(value, decimal.Decimal):  # a quotient would have more digits than decimals have
    small = value.is_finite() and value.adjusted() < KEY_DIGITS
    return small and value == value.to_integral_value()
  if not isinstance(value, numbers.Real) or isinstance(value, bool):
    return False
  # whole numbers in a column with gaps become floats, which are exact below 2^53, or 2^24
  exact = 2 ** (np.finfo(type(value)).nmant + 1) if isinstance(value, FLOATS) else math.inf
  return value % 1 == 0 and abs(value) < exact


def parse_time(value: object) -> int:
  """Converts a time to nanoseconds; parts of a second count.

  The time is a number, in seconds since 1970 UTC or in the unit of its file, which
  `collect_events` finds: here it is taken for seconds. Or it is such a number as text; or, with
  DATES more seconds, a date or time of ISO 8601, in UTC unless it says otherwise, or a datetime
  object. Raises ValueError for anything else.
  """
  if isinstance(value, str):
    try:
      value = int(_check_digits(value))
    except ValueError:
      return _parse_time_text(value.strip())
  if isinstance(value, np.integer | np.floating):
    value = value.item()
  if type(value) is int and -LATEST < value < LATEST:  # the usual case
    return value * NANO
  if isinstance(value, datetime.datetime):
    utc = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    microseconds = (utc - EPOCH) // datetime.timedelta(microseconds=1)
    nanoseconds = microseconds * 1_000 + getattr(value, "nanosecond", 0)  # as pandas has them
    return nanoseconds + DATES * NANO
  if isinstance(value, datetime.date):
    return ((value - EPOCH.date()).days * 86_400 + DATES) * NANO
  if isinstance(value, float):
    value = decimal.Decimal(str(value))  # 0.9 is nine tenths, not the nearest sum of powers of 2
  is_number = isinstance(value, int) and not isinstance(value, bool)
  if isinstance(value, decimal.Decimal):  # not abs(), which refuses large exponents
    is_number = value.is_finite()
  if not is_number or not -LATEST < value < LATEST:
    raise ValueError(
      f"{value!r} is not a time; expected seconds or milliseconds since 1970, or a date"
    )
  return math.floor(value * NANO)


def _check_digits(text: str) -> str:
  """The text. Raises ValueError for 1_2 and for digits of other scripts, which Python reads too."""
  if "_" in text or not text.isascii():
    raise ValueError(f"{text!r} is not a number of the digits 0 to 9")
  return text


def _parse_time_text(text: str) -> int:
  try:
    number = decimal.Decimal(_check_digits(text))
  except (ValueError, decimal.InvalidOperation):
    pass
  else:
    return parse_time(number)
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
    value = _check_digits(value) if isinstance(value, str) else value
    return NO_RATING if value is None or value == "" else float(value)
  except (TypeError, ValueError, ArithmeticError):
    raise ValueError(f"{value!r} as a rating; expected a number") from None
