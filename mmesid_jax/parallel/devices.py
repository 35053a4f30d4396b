"""Accelerators by their makers' data sheets."""

from collections.abc import Mapping
from typing import NamedTuple


class Device(NamedTuple):
  """One kind of accelerator.

  peak: dense bf16 operations per second. memory: bytes; of a TPU, what its compiler lets programs
  use. kinds: parts of jax's device_kind, in lower case. maker: "gpu" (NVIDIA) or "tpu".
  """

  peak: float
  memory: float
  kinds: tuple[str, ...]
  maker: str = "gpu"


# The first match counts: a kind that begins like another one comes before it.
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


def peak_flops(device_kind: str) -> float | None:
  """Dense bf16 operations per second of a jax device_kind; None for one that is not listed."""
  kind = device_kind.lower()
  return next((d.peak for d in DEVICES.values() if any(k in kind for k in d.kinds)), None)
