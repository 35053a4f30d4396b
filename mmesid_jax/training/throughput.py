"""Rates of training: work and floating-point operations per second, and memory."""

import collections
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax

from mmesid_jax.parallel.devices import peak_flops
from mmesid_jax.parallel.mesh import device_count


class Amounts(NamedTuple):
  """The work of one step: targets or items, model operations, and in stages that read rows the real
  tokens and the places for them."""

  work: float
  flops: float
  tokens: float = 0.0
  places: float = 0.0

  @classmethod
  def sum(cls, parts: Iterable["Amounts"]) -> "Amounts":
    return cls(*map(sum, zip(*parts, strict=True)))


class Throughput:
  """Rates over the steps that the device has finished, however many the host has sent ahead."""

  def __init__(self, unit: str):
    self.unit = unit
    peak = peak_flops(jax.devices()[0].device_kind)
    self._peak = None if peak is None else peak * device_count()
    self._running: collections.deque[tuple[jax.Array, Amounts, int]] = collections.deque()
    self._seconds, self._total, self._steps = 0.0, Amounts(0, 0), 0
    self._start_clock()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves the block out of the rates. Steps that run when it begins are not timed."""
    try:
      yield
    finally:
      self._start_clock()

  def started(self, output: jax.Array, amounts: Amounts, steps: int = 1) -> None:
    """Steps were sent to the device; `output` is ready once they are done."""
    self._running.append((output, amounts, steps))

  def read(self) -> dict[str, float]:
    """Rates since the last reading; {} when no step has finished."""
    finished = []
    while self._running and self._running[0][0].is_ready():
      finished.append(self._running.popleft())
    if not finished:
      return {}
    now = time.monotonic()
    seconds, self._since = now - self._since, now
    amounts = Amounts.sum(of_steps for _, of_steps, _ in finished)
    self._seconds += seconds
    self._steps += sum(steps for _, _, steps in finished)
    self._total = Amounts.sum([self._total, amounts])
    return self._rates(amounts, seconds)

  def overall(self) -> dict[str, float]:
    """Rates over everything read so far, without pauses."""
    return self._rates(self._total, self._seconds) if self._seconds else {}

  def seconds_per_step(self) -> float | None:
    """Mean over everything read so far, without pauses; None before the first reading."""
    return self._seconds / self._steps if self._steps else None

  def _start_clock(self) -> None:
    self._running.clear()
    self._since = time.monotonic()

  def _rates(self, amounts: Amounts, seconds: float) -> dict[str, float]:
    rates = {f"{self.unit}_per_second": amounts.work / seconds}
    if amounts.places:
      rates["tokens_per_second"] = amounts.tokens / seconds
      rates["row_fill"] = amounts.tokens / amounts.places
    rates["tflops_per_second"] = amounts.flops / seconds / 1e12
    if self._peak:
      rates["mfu"] = amounts.flops / seconds / self._peak
    if memory := jax.local_devices()[0].memory_stats():  # None on a CPU
      rates["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
    return rates


def describe_rates(rates: dict[str, float]) -> str:
  """Rates in one short line."""
  formats = {
    "targets_per_second": "{:,.0f} targets/s",
    "items_per_second": "{:,.0f} items/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "row_fill": "rows {:.0%} full",
    "tflops_per_second": "{:.3g} TFLOP/s",
    "mfu": "MFU {:.1%}",
    "peak_memory_gib": "{:.1f} GiB at most",
  }
  return ", ".join(text.format(rates[name]) for name, text in formats.items() if name in rates)
