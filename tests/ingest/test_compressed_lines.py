import gzip
import random

import pytest
import zstandard

from mmesid_jax.errors import UserError
from mmesid_jax.ingest import compressed_lines

TEXT = b"".join(b"line %d %s\n" % (i, b"x" * (i % 97)) for i in range(20_000))
LINES = list(enumerate(TEXT.splitlines(), start=1))


def in_two(compress):
  """Two compressed parts one after another, as logs that are appended to have them."""
  return lambda data: compress(data[:12_345]) + compress(data[12_345:])


@pytest.mark.parametrize(
  "compress",
  [
    lambda d: d,
    gzip.compress,
    zstandard.compress,
    in_two(gzip.compress),
    in_two(zstandard.compress),
  ],
)
def test_lines_of_every_compression(tmp_path, compress):
  path = tmp_path / "named.anyhow"
  path.write_bytes(compress(TEXT))
  assert list(compressed_lines.read_lines(path)) == LINES


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("cut", [1, 9, 5_000])
def test_half_a_compressed_file_is_refused(tmp_path, compress, cut):
  """Not taken for a short one: its end is missing."""
  path = tmp_path / "half"
  random.seed(0)
  data = compress(b"".join(b"%d\n" % random.getrandbits(64) for _ in range(20_000)))
  path.write_bytes(data[:-cut])
  with pytest.raises(UserError, match="half: damaged or incomplete after line"):
    list(compressed_lines.read_lines(path))


def test_blank_lines_are_counted_and_left_out(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"one\n\n  \r\nfour\r\nfive")
  assert list(compressed_lines.read_lines(path)) == [(1, b"one"), (4, b"four\r"), (5, b"five")]


def test_lines_that_end_with_a_carriage_return_alone_are_refused(tmp_path, monkeypatch):
  path = tmp_path / "old.csv"
  for lines in (b"user,item\ru,i\r", b"user,item\ru,i"):
    path.write_bytes(lines)
    with pytest.raises(UserError, match=r"old.csv: its lines end .*tr '\\r' '\\n' <OLD >NEW"):
      list(compressed_lines.read_lines(path))
  path.write_bytes(b"user,item\r")
  assert list(compressed_lines.read_lines(path)) == [(1, b"user,item\r")]
  path.write_bytes(b"user,item\ru,i\r" * compressed_lines.CHUNK)
  monkeypatch.setattr(compressed_lines, "LONGEST", compressed_lines.CHUNK)
  with pytest.raises(UserError, match="old.csv: its lines end"):
    list(compressed_lines.read_lines(path))


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(compressed_lines, "LONGEST", 100_000)
  path = tmp_path / "binary"
  path.write_bytes(b"ok\n" + bytes(3 * compressed_lines.CHUNK))
  with pytest.raises(UserError, match="binary:2: longer than"):
    list(compressed_lines.read_lines(path))


def test_no_file_and_a_folder(tmp_path):
  with pytest.raises(UserError, match="nothing: no such file"):
    list(compressed_lines.read_lines(tmp_path / "nothing"))
  with pytest.raises(UserError, match="cannot be read"):
    list(compressed_lines.read_lines(tmp_path))


def test_bad_lines_are_counted_and_the_first_three_quoted():
  bad = compressed_lines.BadLines(allowed=4)
  for number in (3, 5, 8, 9):
    bad.add("f", number, "not\nso")
  bad.check()
  bad.add("f", 11, "not so")
  with pytest.raises(UserError) as told:
    bad.check()
  assert str(told.value) == (
    "5 bad lines, allowed are 4 (--config.max_bad_lines): f:3: not so; f:5: not so; f:8: not so"
  )


def test_a_file_of_bad_lines_is_not_read_to_its_end():
  bad = compressed_lines.BadLines(allowed=1)
  with pytest.raises(UserError, match="^at least 102 bad lines, allowed are 1 "):
    for number in range(1, 10_000):
      bad.add("f", number, "no")
  assert number == 102
