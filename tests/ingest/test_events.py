import datetime
import decimal
import math

import numpy as np
import pandas as pd
import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import events, filters
from mmesid_jax.ingest.events import NANO, collect_events

AUGUST = 1_406_073_600  # 2014-07-23 00:00 UTC


def of(rows, name="a.csv"):
  return collect_events([(name, rows)])


def nanoseconds_of(*values) -> list[int]:
  """The times of a file with these values, in nanoseconds since 1970."""
  found = of([("u", "x", events.parse_time(value), 0.0) for value in values])
  pairs = zip(found.time_E.tolist(), found.nano_E.tolist(), strict=True)
  return [seconds * NANO + nano for seconds, nano in pairs]


@pytest.mark.parametrize(
  "value",
  [
    *(AUGUST, AUGUST * 1_000, AUGUST * 10**6, AUGUST * 10**9, float(AUGUST), AUGUST + 0.9),
    *(str(AUGUST), f" {AUGUST * 1_000} ", f"{AUGUST}.0", "1.4060736e9"),
    *("2014-07-23", "2014-07-23T00:00:00Z", "2014-07-23 02:00:00+02:00", "20140723T000000"),
    *(datetime.date(2014, 7, 23), datetime.datetime(2014, 7, 23)),
    datetime.datetime(2014, 7, 23, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
  ],
)
def test_times_in_every_form(value):
  assert nanoseconds_of(value)[0] // NANO == AUGUST


@pytest.mark.parametrize(
  ("value", "nanoseconds"),
  [
    (AUGUST * 1_000 + 106, 106_000_000),
    (AUGUST * 10**6 + 106, 106_000),
    (AUGUST * 10**9 + 106, 106),
    *((AUGUST + 0.106, 106_000_000), (f"{AUGUST}.106", 106_000_000)),
    (decimal.Decimal(AUGUST) + decimal.Decimal("0.106"), 106_000_000),
    *(("2014-07-23T00:00:00.106Z", 106_000_000), ("2014-07-23 00:00:00,1064", 106_400_000)),
    ("2014-07-23T02:00:00.123456789+02:00", 123_456_789),
    ("2014-07-23T00:00:00.1234567", 123_456_700),
    (datetime.datetime(2014, 7, 23, 0, 0, 0, 106), 106_000),
    (pd.Timestamp("2014-07-23T00:00:00.123456789"), 123_456_789),
  ],
)  # fmt: skip
def test_parts_of_a_second_are_kept(value, nanoseconds):
  assert nanoseconds_of(value) == [AUGUST * NANO + nanoseconds]


def test_events_of_one_second_are_sorted_and_no_duplicates():
  times = [AUGUST * NANO + nano for nano in (900, 106, 500, 106)]
  found = of([("u", item, time, 1.0) for item, time in zip("cabb", times, strict=True)])
  assert found.time_E.tolist() == [AUGUST] * 4 and found.nano_E.tolist() == [900, 106, 500, 106]
  assert [found.item_keys[i] for i in found.sort().item_E] == ["a", "b", "b", "c"]
  assert filters.first_of_duplicates(found, "exact").all()
  assert filters.first_of_duplicates(found, "pair").tolist() == [True, True, False, True]


def test_dates_are_no_numbers_of_milliseconds():
  """As databases write "no end"."""
  for value in ("9999-12-31", datetime.date(9999, 12, 31), datetime.datetime(9999, 12, 31)):
    assert nanoseconds_of(value, AUGUST) == [253_402_214_400 * NANO, AUGUST * NANO]


def test_times_before_1970():
  assert nanoseconds_of(-5, "-5", "1969-12-31") == [-5 * NANO, -5 * NANO, -86_400 * NANO]
  assert nanoseconds_of(-AUGUST * 1_000 - 1) == [-AUGUST * NANO - 10**6]
  assert of([("u", "x", -1, 0.0)]).time_E.tolist() == [-1]  # rounded down


@pytest.mark.parametrize(
  "value",
  [
    "",
    "soon",
    "12 3, 2009",
    None,
    True,
    [],
    math.nan,
    math.inf,
    "nan",
    "sNaN",
    1e30,
    10**30,
    "9" * 99,
    "1_400_000_000",
    "1_4.5",
    "\u0661\u0664\u0660\u0660\u0660\u0660",
    "1e" + "9" * 30,
    "1e9999999",
    "-1e9999999",
    decimal.Decimal("1e9999999"),
    decimal.Decimal("sNaN"),
  ],
)
def test_what_is_no_time(value):
  with pytest.raises(ValueError, match="not a time"):
    events.parse_time(value)


def test_numbers_that_are_nearly_0_or_have_many_digits_are_times():
  assert nanoseconds_of("1e-9999999", f"{AUGUST}.{'0' * 40}1") == [0, AUGUST * NANO]


def test_a_file_has_one_unit():
  """One that is chosen value by value would turn 2603 and 1973 round."""
  last, first = 99_999_999_999, 100_000_000_001
  assert nanoseconds_of(last, first) == [last * 10**6, first * 10**6]
  many = [AUGUST * 1_000 + n for n in range(9)]
  assert nanoseconds_of(*many, 0, -1, 5) == [*(n * 10**6 for n in many), 0, -(10**6), 5 * 10**6]
  end = 253_402_300_799  # the last second of 9999, as databases write "no end"
  assert nanoseconds_of(AUGUST, AUGUST + 1, end)[2] == end * NANO
  files = [(f"{k}.csv", [("u", "x", events.parse_time(AUGUST * k), 0.0)]) for k in (1, 1_000)]
  assert collect_events(files).time_E.tolist() == [AUGUST, AUGUST]


@pytest.mark.parametrize("values", [(1, 1, 1_000), (1_000, 1_000, 1), (10**6, 1, 10**9, 10**9)])
def test_two_units_in_a_file_are_refused(values):
  with pytest.raises(UserError, match="a.csv: the times are in .*seconds.*in one unit"):
    nanoseconds_of(*(AUGUST * k for k in values))


def test_whole_numbers_that_are_dates(capsys):
  """As seconds, all of them would be in August 1970."""
  assert nanoseconds_of(20140723, "20240229", 19700101.0) == [
    AUGUST * NANO,
    1_709_164_800 * NANO,
    0,
  ]
  said = capsys.readouterr().out
  assert said == "a.csv: times such as 20140723 are read as dates, 2014-07-23 00:00:00\n"
  assert nanoseconds_of(20140723000005, 20140722235959) == [
    (AUGUST + 5) * NANO,
    (AUGUST - 1) * NANO,
  ]
  assert nanoseconds_of(201407230001) == [(AUGUST + 60) * NANO]
  capsys.readouterr()
  for numbers in ([20140800], [20141301], [21010101], [19691231], [AUGUST], [20_140_723.5]):
    assert nanoseconds_of(*numbers) == [int(n * NANO) for n in numbers]
  assert not capsys.readouterr().out


def test_dates_without_hyphens_beside_other_numbers_are_refused():
  with pytest.raises(UserError, match="a.csv: times such as 20140723 look like dates, but 0 does"):
    nanoseconds_of(20140723, 20140724, 0)
  counter = [*range(20_140_000, 20_150_000)]  # few of these are dates
  assert nanoseconds_of(*counter) == [n * NANO for n in counter]


def test_dates_beside_numbers():
  assert nanoseconds_of("2014-07-23", AUGUST * 1_000) == [AUGUST * NANO] * 2


def test_keys():
  assert events.parse_key("B00") == "B00" and events.parse_key(7) == "7" == events.parse_key(7.0)
  assert events.parse_key("\0\t\N{SNOWMAN}") == "\0\t\N{SNOWMAN}"
  assert events.parse_key(decimal.Decimal(2)) == "2" == events.parse_key(np.int64(2))
  long = decimal.Decimal("12345678901234567890123456789012345678")  # 38 digits, as Parquet has
  assert events.parse_key(long) == str(long) and events.parse_key(decimal.Decimal("2.00")) == "2"
  bad = map(decimal.Decimal, ("1e9999999", "NaN", "sNaN", "Infinity", "1.5", f"{long}.5"))
  for value in (2.0**53, "", None, True, 1.5, math.nan, math.inf, [], *bad):
    with pytest.raises(ValueError, match="as a key"):
      events.parse_key(value)
  with pytest.raises(ValueError, match=r"'\\ud800' as a key holds half of a surrogate pair"):
    events.parse_key("\ud800")


def test_ratings():
  assert events.parse_rating("4.5") == 4.5 == events.parse_rating(4.5)
  assert math.isnan(events.parse_rating(None)) and math.isnan(events.parse_rating(""))
  for text in ("good", "1_0", "\u0664"):  # the last is 4 in Arabic
    with pytest.raises(ValueError, match="as a rating"):
      events.parse_rating(text)
  with pytest.raises(ValueError, match="as a rating"):
    events.parse_rating(10**400)


def test_numbers_are_by_first_appearance_also_after_a_filter():
  rows = [("u", "x", 5, 1), ("v", "y", 4, 1), ("u", "y", 3, 1), ("w", "z", 2, 1), ("v", "x", 1, 1)]
  found = of((*row[:2], row[2] * NANO, row[3]) for row in rows)
  assert found.user_keys == ["u", "v", "w"] and found.item_keys == ["x", "y", "z"]
  assert found.user_E.tolist() == [0, 1, 0, 2, 1] and found.time_E.tolist() == [5, 4, 3, 2, 1]
  left = found.select(np.array([False, True, False, True, True])).renumber()
  assert left.user_keys == ["v", "w"] and left.item_keys == ["y", "z", "x"]
  assert left.user_E.tolist() == [0, 1, 0] and left.item_E.tolist() == [0, 1, 2]
  assert left.time_E.tolist() == [4, 2, 1]
  assert left.counts() == {"events": 3, "users": 2, "items": 3}


def test_no_times_at_all():
  found = of([("u", "x", None, math.nan), ("u", "y", None, math.nan)])
  assert found.time_E is None and found.select(np.array([True, False])).time_E is None
