"""Text from data cannot steer the terminal that it is printed to."""

import sys
import unicodedata

import pytest

from mmesid_jax.display import reporter
from mmesid_jax.display.escape import escape_line, escape_text
from mmesid_jax.display.table import format_markdown_table, format_table

TITLE = "a\x1b]0;owned\x07b\x1b[2J\x9b3Jc\u202ed\u2066e\rf\b"
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
SHOWN = r"a\x1b]0;owned\x07b\x1b[2J\x9b3Jc\u202ed\u2066e\rf\x08"


def test_every_character_that_steers_is_escaped_and_every_other_stays():
  for place in range(sys.maxunicode + 1):
    x = chr(place)
    steers = unicodedata.category(x) in ("Cc", "Cs", "Zl", "Zp")
    turns = unicodedata.bidirectional(x) in (
      "LRE",
      "RLE",
      "LRO",
      "RLO",
      "PDF",
      "LRI",
      "RLI",
      "FSI",
      "PDI",
    )
    marks = x in "\u200e\u200f\u061c"
    assert (escape_line(x) != x) == (steers or turns or marks), hex(place)
    assert (escape_text(x) != x) == ((steers or turns or marks) and x not in "\t\n"), hex(place)
    assert escape_line(x).isprintable() or escape_line(x) == x


def test_text_of_any_language_stays():
  for text in ("naïve 漢字 🛍", "👩\u200d🔬", "שלום عليكم", "क्\u200dष"):
    assert escape_line(text) == text


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("show", [reporter.info, reporter.warn])
def test_what_is_reported_is_escaped(monkeypatch, capsys, terminal, show):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
  show(f"first {TITLE}\nsecond")
  printed = "".join(capsys.readouterr())
  assert f"first {SHOWN}\nsecond\n" in printed and TITLE not in printed


def test_a_cell_cannot_leave_its_line():
  for table in (format_table, format_markdown_table):
    text = table(["name", "x"], [[f"{TITLE}\n", 1]])
    assert SHOWN + r"\n" in text and not set(text) & set("\x1b\r\b\x9b")
  assert len(format_table(["name", "x"], [[f"{TITLE}\n", 1]]).splitlines()) == 2
