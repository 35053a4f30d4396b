"""Tables, character by character."""

import pytest

from mmesid_jax.display.table import format_markdown_table, format_table

ROWS = [["masked", 0.25, "9.1%"], ["x", -1234, ""]]


def test_words_to_the_left_and_numbers_to_the_right():
  assert format_table(["protocol", "nDCG@5", "dead"], ROWS) == (
    "protocol  nDCG@5  dead\n"
    "masked      0.25  9.1%\n"
    "x          -1234"
  )  # fmt: skip


def test_several_columns_of_words():
  text = format_table(["", "", "HR@5"], [["a", "SASRec", 1], ["long", "b", 2]], text_columns=2)
  assert text == "              HR@5\na     SASRec     1\nlong  b          2"


def test_a_table_without_rows_is_its_header():
  assert format_table(["a", "b"], []) == "a  b"


def test_a_cell_too_few_is_a_mistake():
  with pytest.raises(ValueError):
    format_table(["a", "b"], [[1]])


def test_markdown():
  assert format_markdown_table(["a", "seeds"], [["base", 0], ["x", "0, 1"]]) == (
    "| a    | seeds |\n|------|-------|\n| base | 0     |\n| x    | 0, 1  |"
  )
