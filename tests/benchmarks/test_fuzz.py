"""Damaged files for every reader: a small seeded run, and readers that do what none may."""

import pathlib
import subprocess
import sys

import commands
import fuzz
import fuzz_inputs
import fuzz_readers
import pytest

from mmesid_jax.errors import UserError


def found_in(folder: pathlib.Path, readers, count: int) -> tuple[list[fuzz.Finding], set[str]]:
  """The findings of the first inputs, and the names of the readers that had one."""
  findings, names = [], set()
  inputs = fuzz.Inputs(readers, seed=0)
  work = folder / "work"
  work.mkdir()
  places = [reader.name for reader in readers]
  fuzz.run_inputs(
    inputs, range(count), work, lambda _, place: names.add(places[place]), findings.append
  )
  assert [path.name for path in folder.iterdir()] == ["work"]
  return findings, names


def read_whole_files(readers, folder: pathlib.Path) -> None:
  for place, reader in enumerate(readers):
    for name, content in reader.files.items():
      path = folder / str(place) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
    reader.read(folder / str(place))


def test_whole_files_are_read(tmp_path):
  read_whole_files(fuzz_readers.quick_readers(), tmp_path)


@pytest.mark.slow
def test_whole_files_of_every_reader_are_read(tmp_path):
  read_whole_files(fuzz_readers.all_readers(), tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of texts in Python's notation
def test_damaged_files_give_our_own_error_or_none(tmp_path):
  readers = fuzz_readers.quick_readers()
  findings, names = found_in(tmp_path, readers, 500)
  assert findings == []
  assert names == {reader.name for reader in readers}


def raise_another(path):
  raise KeyError(path)


def raise_our_own(path):
  raise UserError(f"{path}: damaged")


def write_outside(path):
  try:
    (path.parent.parent.parent / "none" / "x").write_text("")
  except FileNotFoundError:
    pass


def remove_outside(path):
  (path.parent.parent.parent / "none").unlink(missing_ok=True)


def start_a_process(path):
  subprocess.run([sys.executable, "-c", ""], check=True)


@pytest.mark.parametrize(
  ("read", "told"),
  [
    (raise_our_own, None),
    (lambda path: path.with_name("out").write_text(""), None),
    (raise_another, "KeyError"),
    (write_outside, "open outside of its folder"),
    (remove_outside, "os.remove outside of its folder"),
    (start_a_process, "subprocess.Popen"),
  ],
)
def test_what_no_reader_may_do_is_found(tmp_path, read, told):
  reader = fuzz_readers.Reader(
    "x", 1, lambda folder: read(folder / "x"), {"x": b"1"}, {"x": fuzz_inputs.damage_bytes}
  )
  findings, _ = found_in(tmp_path, [reader], 2)
  assert len(findings) == (2 if told else 0)
  assert all(told in finding.text for finding in findings)


@pytest.mark.slow
def test_the_command():
  done = commands.benchmark("fuzz", "--count=3000", "--seed=1")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "3,000 inputs" in done.stdout and "seed 1: 0 findings" in done.stdout
