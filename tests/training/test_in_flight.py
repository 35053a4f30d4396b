"""How far the host runs ahead of a device whose clock the test moves."""

import pytest

from mmesid_jax.training.in_flight import InFlight


class Device:
  """Finishes a call `seconds` after the one before; the host needs no time of its own."""

  def __init__(self):
    self.now, self.free = 0.0, 0.0

  def call(self, seconds: float) -> "Call":
    self.free = max(self.now, self.free) + seconds
    return Call(self, self.free)


class Call:
  def __init__(self, device: Device, end: float):
    self._device, self._end = device, end

  def is_ready(self) -> bool:
    return self._device.now >= self._end

  def block_until_ready(self) -> None:
    self._device.now = max(self._device.now, self._end)


def seconds_ahead(device: Device, in_flight: InFlight, seconds: float, calls: int) -> list[float]:
  """How long the device has to work when a call was just sent."""
  ahead = []
  for _ in range(calls):
    call = device.call(seconds)
    ahead.append(device.free - device.now)
    in_flight.add(call)
  return ahead


@pytest.mark.parametrize("seconds", [0.6, 16.0])
def test_two_long_steps_are_ahead(seconds):
  device = Device()
  ahead = seconds_ahead(device, InFlight(lambda: device.now), seconds, 20)
  assert max(ahead) == pytest.approx(2 * seconds) and ahead[-1] == pytest.approx(2 * seconds)


@pytest.mark.parametrize("seconds", [0.0001, 0.003, 0.1])
def test_short_steps_are_about_a_second_ahead(seconds):
  device = Device()
  ahead = seconds_ahead(device, InFlight(lambda: device.now), seconds, 40_000)
  assert max(ahead) <= 1.01 and ahead[-1] >= 0.5


def test_steps_that_grow_longer_are_not_sent_as_far_ahead():
  """Also after a pause, in which everything in flight was finished."""
  device = Device()
  in_flight = InFlight(lambda: device.now)
  for seconds in (0.01, 5.0, 0.01, 5.0):
    assert seconds_ahead(device, in_flight, seconds, 2000)[-1] <= max(1.01, 2 * seconds)
    device.now += 60
