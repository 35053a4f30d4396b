"""benchmarks/mutants.py: which lines it changes, and whether a change that matters is found."""

import pathlib

import mutant_choice
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = '''
"""A docstring with 1 + 1."""
def f(x: "a < b", scale=2.0):
  if x < 3 and scale:
    raise ValueError(f"{x + 1} is below 3")
  print(x)
  return scale * max(x, -1) + g(x, key=1, axis=0)
'''


def test_every_kind_of_change_is_found_and_text_is_left_alone():
  found = mutant_choice.find_mutants("x.py", TEXT)
  assert all(TEXT.splitlines()[m.line - 1].strip() == m.before != m.after for m in found)
  assert {m.after for m in found if m.line == 4} == {
    "if x <= 3 and scale:",
    "if x < 3 or scale:",
    "if x < 6 and scale:",
    "if (not (x < 3 and scale)):",
  }
  assert [m.after for m in found if m.line == 3] == ['def f(x: "a < b", scale=4.0):']
  assert [m.after for m in found if m.line == 6] == ["pass"]
  assert {m.after for m in found if m.line == 7} == {
    "return scale / max(x, -1) + g(x, key=1, axis=0)",
    "return scale * min(x, -1) + g(x, key=1, axis=0)",
    "return scale * max(x, 1) + g(x, key=1, axis=0)",
    "return scale * max(x, -2) + g(x, key=1, axis=0)",
    "return scale * max(x, -1) - g(x, key=1, axis=0)",
    "return scale * max(x, -1) + g(x, key=2, axis=0)",
    "return scale * max(x, -1) + g(x, axis=0)",
    "return scale * max(x, -1) + g(x, key=1, )",
  }
  assert {m.line for m in found} == {3, 4, 6, 7}


@pytest.mark.parametrize("file", mutant_choice.TESTS)
def test_the_table_names_files_and_tests_that_exist(file):
  assert (ROOT / "mmesid_jax" / file).is_file()
  assert all((ROOT / "tests" / test).is_file() for test in mutant_choice.TESTS[file])


def test_every_file_of_the_core_is_in_the_table():
  folders = ("models", "models/layers", "losses")
  core = {
    f"{folder}/{file.name}"
    for folder in folders
    for file in (ROOT / "mmesid_jax" / folder).glob("[!_]*.py")
  }
  assert core <= mutant_choice.TESTS.keys()


def test_the_same_seed_chooses_the_same_mutants():
  choice = mutant_choice.sample_mutants(20, 3, "losses/")
  assert choice == mutant_choice.sample_mutants(20, 3, "losses/")
  assert choice != mutant_choice.sample_mutants(20, 4, "losses/")
  assert len({*choice}) == 20 and all(m.file.startswith("losses/") for m in choice)
