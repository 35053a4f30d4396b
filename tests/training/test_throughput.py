"""Rates count what the device has finished, and only the time in which it was at work."""

import pytest

from mmesid_jax.parallel.devices import DEVICES, peak_flops
from mmesid_jax.training import throughput
from mmesid_jax.training.throughput import Amounts, Throughput, describe_rates


class Output:
  """Stands for what a step returns; finished when told."""

  def __init__(self, ready: bool = False):
    self.ready = ready

  def is_ready(self) -> bool:
    return self.ready


@pytest.fixture
def clock(monkeypatch):
  """A clock whose seconds the test sets."""
  now = [0.0]
  monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
  return now


def test_only_finished_steps_count(clock):
  rates = Throughput("targets")
  outputs = [Output(ready=True), Output(ready=True), Output()]
  for output in outputs:
    rates.started(output, Amounts(work=10, flops=4e12, tokens=30, places=40))
  clock[0] = 2.0
  assert rates.read() == {
    "targets_per_second": 10,
    "tokens_per_second": 30,
    "row_fill": 0.75,
    "tflops_per_second": 4,
  }
  assert rates.read() == {}
  outputs[2].ready, clock[0] = True, 7.0
  assert rates.read()["targets_per_second"] == 2
  assert rates.overall()["targets_per_second"] == pytest.approx(30 / 7)


def test_pauses_do_not_count(clock):
  rates = Throughput("items")
  with rates.paused():
    clock[0] = 100.0  # a validation
  rates.started(Output(ready=True), Amounts(work=6, flops=0))
  clock[0] = 103.0
  assert rates.read()["items_per_second"] == 2


def test_the_share_of_the_peak(clock, monkeypatch):
  monkeypatch.setattr(throughput, "peak_flops", lambda kind: 1e13)
  rates = Throughput("targets")
  rates.started(Output(ready=True), Amounts(work=1, flops=8e12))
  clock[0] = 2.0
  found = rates.read()
  assert found["mfu"] == pytest.approx(0.4)
  assert describe_rates(found) == "0 targets/s, 4 TFLOP/s, MFU 40.0%"


@pytest.mark.parametrize(
  ("kind", "tflops"),
  [("NVIDIA H200", 989.4), ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.5),
   ("NVIDIA A100-SXM4-80GB", 312), ("TPU v5 lite", 197), ("TPU v5p", 459),
   ("TPU v5", 459), ("TPU v4", 275), ("TPU v6 lite", 918)],
)  # fmt: skip
def test_peaks(kind, tflops):
  assert peak_flops(kind) == tflops * 1e12


def test_every_device_is_found_by_its_own_kinds():
  for name, device in DEVICES.items():
    for kind in device.kinds:
      assert peak_flops(kind.upper()) == device.peak, name


def test_an_unknown_device_has_no_peak():
  assert peak_flops("cpu") is None
