"""What the accelerator gets done: work a second, floating-point operations, memory."""

import collections
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax

from mmesid_jax.parallel import sharding


class Device(NamedTuple):
  """By the maker's data sheet. peak: dense bf16 operations a second; memory: bytes, of a TPU what
  its compiler lets programs take; kinds: what jax's device_kind holds, in lower case; maker: "gpu"
  (NVIDIA) or "tpu"."""

  peak: float
  memory: float
  kinds: tuple[str, ...]
  maker: str = "gpu"


# One whose kind begins another's stands behind it.
DEVICES: Mapping[str, Device] = {
  "a100-40g": Device(312e12, 40e9, ("a100-sxm4-40gb", "a100-pcie-40gb")),
  "a100-80g": Device(312e12, 80e9, ("a100",)),
  "h100-pcie": Device(756.5e12, 80e9, ("h100 pcie",)),
  "h100-nvl": Device(835.5e12, 94e9, ("h100 nvl",)),
  "h100": Device(989.4e12, 80e9, ("h100",)),  # SXM
  "h200": Device(989.4e12, 141e9, ("h200",)),
  "b200": Device(2250e12, 180e9, ("b200",)),
  "v4": Device(275e12, 30.75 * 2**30, ("tpu v4",), "tpu"),
  "v5e": Device(197e12, 15.75 * 2**30, ("tpu v5 lite", "tpu v5e"), "tpu"),
  "v5p": Device(459e12, 95.74 * 2**30, ("tpu v5",), "tpu"),
  "v6e": Device(918e12, 31.25 * 2**30, ("tpu v6",), "tpu"),
}


def peak(device_kind: str) -> float | None:
  """Dense bf16 operations a second of what jax calls so, None for a device not listed."""
  kind = device_kind.lower()
  return next((d.peak for d in DEVICES.values() if any(k in kind for k in d.kinds)), None)


class Amounts(NamedTuple):
  """What one step gets done: targets or items, model operations, and, of stages that read rows,
  real tokens and the places that there were for them."""

  work: float
  flops: float
  tokens: float = 0.0
  places: float = 0.0

  @classmethod
  def sum(cls, parts: Iterable["Amounts"]) -> "Amounts":
    return cls(*map(sum, zip(*parts, strict=True)))


class Throughput:
  """Rates over the steps that the device has finished, whatever the host has sent ahead."""

  def __init__(self, unit: str):
    self.unit = unit
    alone = peak(jax.devices()[0].device_kind)
    self._peak = None if alone is None else alone * sharding.devices()
    self._running: collections.deque[tuple[jax.Array, Amounts]] = collections.deque()
    self._seconds, self._total = 0.0, Amounts(0, 0)
    self.restart()

  def restart(self) -> None:
    """Starts the clock. Nothing may be running: what was, counts as not timed."""
    self._running.clear()
    self._since = time.monotonic()

  def started(self, output: jax.Array, amounts: Amounts) -> None:
    """A step was sent to the device; `output` is there once it is done."""
    self._running.append((output, amounts))

  def read(self) -> dict[str, float]:
    """Rates since the last reading; {} when no step has finished."""
    finished = []
    while self._running and self._running[0][0].is_ready():
      finished.append(self._running.popleft()[1])
    if not finished:
      return {}
    now = time.monotonic()
    seconds, self._since = now - self._since, now
    done = Amounts.sum(finished)
    self._seconds += seconds
    self._total = Amounts.sum([self._total, done])
    return self._rates(done, seconds)

  def overall(self) -> dict[str, float]:
    """Rates over everything read so far, pauses left out."""
    return self._rates(self._total, self._seconds) if self._seconds else {}

  def _rates(self, done: Amounts, seconds: float) -> dict[str, float]:
    rates = {f"{self.unit}_per_second": done.work / seconds}
    if done.places:
      rates |= {"tokens_per_second": done.tokens / seconds, "row_fill": done.tokens / done.places}
    rates["tflops_per_second"] = done.flops / seconds / 1e12
    if self._peak:
      rates["mfu"] = done.flops / seconds / self._peak
    # What a device with memory of its own tells; a CPU does not.
    if memory := jax.local_devices()[0].memory_stats():
      rates["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
    return rates


def describe(rates: dict[str, float]) -> str:
  """Rates in one short line."""
  forms = {
    "targets_per_second": "{:,.0f} targets/s",
    "items_per_second": "{:,.0f} items/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "row_fill": "rows {:.0%} full",
    "tflops_per_second": "{:.3g} TFLOP/s",
    "mfu": "MFU {:.1%}",
    "peak_memory_gib": "{:.1f} GiB at most",
  }
  return ", ".join(form.format(rates[name]) for name, form in forms.items() if name in rates)
