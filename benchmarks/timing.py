"""How the benchmarks measure: contestants take turns, so what else the machine does falls on all.

Each runs once a round, after one call that compiles and is not timed. Medians over the rounds are
reported, with the extremes, and the machine they were measured on.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "peft")


def alternate(
  contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
  """Units of work a second, by contestant and round.

  A contestant is called without arguments, does its work, waits for the device to finish, and
  returns how many units that were.
  """
  import tqdm

  rates: dict[str, list[float]] = {name: [] for name in contestants}
  with tqdm.tqdm(total=(1 + rounds) * len(contestants), leave=False) as bar:
    for round_ in range(1 + rounds):
      for name, work in contestants.items():
        bar.set_description(name if round_ else f"{name}, warm-up")
        start = time.perf_counter()
        units = work()
        seconds = time.perf_counter() - start
        if round_:
          rates[name].append(units / seconds)
        bar.update()
  return rates


def table(rates: Mapping[str, Sequence[float]], unit: str, reference: str) -> str:
  """One line a contestant: median, least and most `unit` a second; the last column says how many
  times as fast as it the reference is."""
  medians = {name: statistics.median(r) for name, r in rates.items()}
  width = max(map(len, rates))
  lines = [f"{unit + ' a second':{width}}     median        min        max  {reference} is"]
  for name, r in rates.items():
    times = medians[reference] / medians[name]
    lines.append(
      f"{name:{width}} {_number(medians[name])} {_number(min(r))} {_number(max(r))}  {times:.2f} x"
    )
  return "\n".join(lines)


def _number(x: float) -> str:
  return f"{x:10,.0f}" if x >= 100 else f"{x:10.3g}"


def environment() -> dict[str, Any]:
  """Date, versions and machine; the device is jax's."""
  import jax

  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "python": platform.python_version(),
    **{name: version for name in PACKAGES if (version := _version(name))},
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processor": platform.processor() or platform.machine(),
    "cores": os.cpu_count(),
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def write(path: pathlib.Path, figures: Mapping[str, Any]) -> None:
  """As JSON, complete or not at all."""
  from mmesid_jax.files import artifact

  artifact.write_text(path, json.dumps(figures, indent=1) + "\n")
