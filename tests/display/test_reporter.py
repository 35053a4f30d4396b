"""Lines, warnings and progress, in a terminal and in a file."""

import io
import sys

import pytest

from mmesid_jax.display import reporter


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """Seconds that only the test lets pass; for tqdm too."""
  now = [1_000.0]
  monkeypatch.setattr("time.monotonic", lambda: now[0])
  monkeypatch.setattr("tqdm.std.time", lambda: now[0])
  monkeypatch.setattr(reporter.tqdm, "monitor_interval", 0)  # no thread that looks at the clock
  return now


@pytest.fixture(autouse=True)
def unmute():
  yield
  reporter.mute(False)


@pytest.fixture
def into(monkeypatch):
  def set_streams(error):
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    return error

  return set_streams


def work(clock, seconds=100):
  """A step a second, and a line to stdout in the middle."""
  with reporter.progress(label="encode", total=seconds, unit="items") as bar:
    for second in range(seconds):
      clock[0] += 1
      if second == seconds // 2:
        reporter.info("in between")
      bar.update(1)


def test_a_file_gets_a_whole_line_every_half_minute(clock, into):
  err = into(io.StringIO())
  work(clock)
  text = err.getvalue()
  assert "\r" not in text and "\x1b" not in text
  lines = text.splitlines()
  assert text.endswith("\n") and [line.split("%")[0] for line in lines] == [
    "encode:  30",
    "encode:  60",
    "encode:  90",
  ]
  assert "30/100" in lines[0] and "01:10" in lines[0] and "items/s" in lines[0]
  assert sys.stdout.getvalue() == "in between\n"


def test_a_description_that_changes_all_the_time_gives_no_more_lines(clock, into):
  err = into(io.StringIO())
  for second in (bar := reporter.progress(range(100), "train")):
    clock[0] += 1
    bar.set_postfix(loss=second)
  assert len(err.getvalue().splitlines()) == 3


def test_around_an_iterable_it_gives_the_same_items(clock, into):
  err = into(io.StringIO())
  assert list(reporter.progress("abc", "letters")) == ["a", "b", "c"]
  assert err.getvalue() == ""  # done in less than `delay`


def test_a_terminal_gets_a_bar_that_is_drawn_over_itself(clock, into):
  err = into(Terminal())
  work(clock)
  text = err.getvalue()
  assert text.count("\r") > 50 and "encode:  50%" in text
  assert text.endswith("\r")  # and is gone at the end
  assert sys.stdout.getvalue() == "in between\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_mute_leaves_warnings_only(clock, into, stream):
  err = into(stream())
  reporter.mute()
  work(clock)
  reporter.warn("no titles")
  assert err.getvalue() == "warning: no titles\n" and sys.stdout.getvalue() == ""
  reporter.mute(False)
  reporter.info("again")
  assert sys.stdout.getvalue() == "again\n"


def test_warnings_go_to_stderr(capsys):
  reporter.warn("two tables")
  reporter.info()
  reporter.info("a\nb")
  assert capsys.readouterr() == ("\na\nb\n", "warning: two tables\n")


def test_the_label_of_a_bar_is_escaped():
  with reporter.progress(label="a\x1b[2J\n.csv", total=1) as bar:
    assert bar.desc.startswith("a\\x1b[2J\\n.csv")
