import datetime
import decimal
import math

import numpy as np
import pandas as pd
import pytest

from mmesid_jax.ingest import events, filters
from mmesid_jax.ingest.events import NANO, collect_events

AUGUST = 1_406_073_600  # 2014-07-23 00:00 UTC


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
  assert events.parse_time(value) // NANO == AUGUST


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
  assert events.parse_time(value) == AUGUST * NANO + nanoseconds


def test_events_of_one_second_are_sorted_and_no_duplicates():
  times = [AUGUST * NANO + nano for nano in (900, 106, 500, 106)]
  found = collect_events([("u", item, time, 1.0) for item, time in zip("cabb", times, strict=True)])
  assert found.time_E.tolist() == [AUGUST] * 4 and found.nano_E.tolist() == [900, 106, 500, 106]
  assert [found.item_keys[i] for i in found.sort().item_E] == ["a", "b", "b", "c"]
  assert filters.first_of_duplicates(found, "exact").all()
  assert filters.first_of_duplicates(found, "pair").tolist() == [True, True, False, True]


def test_dates_are_no_numbers_of_milliseconds():
  """As databases write "no end"."""
  for value in ("9999-12-31", datetime.date(9999, 12, 31), datetime.datetime(9999, 12, 31)):
    assert events.parse_time(value) == 253_402_214_400 * NANO


def test_times_before_1970():
  assert events.parse_time(-5) == -5 * NANO == events.parse_time("-5")
  assert events.parse_time("1969-12-31") == -86_400 * NANO
  assert collect_events([("u", "x", -1, 0.0)]).time_E.tolist() == [-1]  # rounded down


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
    "1e" + "9" * 30,
  ],
)
def test_what_is_no_time(value):
  with pytest.raises(ValueError, match="not a time"):
    events.parse_time(value)


def test_keys():
  assert events.parse_key("B00") == "B00" and events.parse_key(7) == "7" == events.parse_key(7.0)
  assert events.parse_key("\0\t\N{SNOWMAN}") == "\0\t\N{SNOWMAN}"
  assert events.parse_key(decimal.Decimal(2)) == "2" == events.parse_key(np.int64(2))
  for value in (2.0**53, "", None, True, 1.5, math.nan, math.inf, []):
    with pytest.raises(ValueError, match="as a key"):
      events.parse_key(value)
  with pytest.raises(ValueError, match="surrogates"):
    events.parse_key("\ud800")


def test_ratings():
  assert events.parse_rating("4.5") == 4.5 == events.parse_rating(4.5)
  assert math.isnan(events.parse_rating(None)) and math.isnan(events.parse_rating(""))
  with pytest.raises(ValueError, match="as a rating"):
    events.parse_rating("good")


def test_numbers_are_by_first_appearance_also_after_a_filter():
  rows = [("u", "x", 5, 1), ("v", "y", 4, 1), ("u", "y", 3, 1), ("w", "z", 2, 1), ("v", "x", 1, 1)]
  found = collect_events((*row[:2], row[2] * NANO, row[3]) for row in rows)
  assert found.user_keys == ["u", "v", "w"] and found.item_keys == ["x", "y", "z"]
  assert found.user_E.tolist() == [0, 1, 0, 2, 1] and found.time_E.tolist() == [5, 4, 3, 2, 1]
  left = found.select(np.array([False, True, False, True, True])).renumber()
  assert left.user_keys == ["v", "w"] and left.item_keys == ["y", "z", "x"]
  assert left.user_E.tolist() == [0, 1, 0] and left.item_E.tolist() == [0, 1, 2]
  assert left.time_E.tolist() == [4, 2, 1]
  assert left.counts() == {"events": 3, "users": 2, "items": 3}


def test_no_times_at_all():
  found = collect_events([("u", "x", None, math.nan), ("u", "y", None, math.nan)])
  assert found.time_E is None and found.select(np.array([True, False])).time_E is None
