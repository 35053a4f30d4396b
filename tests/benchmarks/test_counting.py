"""benchmarks/counting.py as it is typed, on few events."""

import re

import pytest
from commands import benchmark


@pytest.mark.slow
def test_it_says_how_long_counting_takes_and_what_memory():
  done = benchmark("counting", "--events=5000", "--items=300")
  assert done.returncode == 0, done.stderr[-2000:]
  line = r"[45],\d{3} events of 563 users, 300 items: .* s of the processor, at most .* GiB, 100.0%"
  assert re.match(line, done.stdout), done.stdout
