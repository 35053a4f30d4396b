"""Raw events to a dataset: python benchmarks/importing.py --output=runs/importing

Invents --events of JSON lines as Amazon's of 2014 are (a short text each, items of uneven
popularity), and runs `prepare` on them as a process of its own. Prints seconds, events a second and
the most memory, and writes OUTPUT/importing.json.
"""

import pathlib
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import timing
from absl import flags

from mmesid_jax.config import command_line

OUTPUT = flags.DEFINE_string("output", None, "A folder for the events and the figures.")
EVENTS = flags.DEFINE_list("events", ["100000", "1000000", "10000000"], "How many, smallest first.")
flags.mark_flag_as_required("output")

ROOT = pathlib.Path(__file__).parents[1]
CHUNK = 100_000  # events written at once
EVENTS_A_USER, EVENTS_AN_ITEM = 10, 20  # on average


def main(argv: list[str]) -> None:
  del argv
  output = pathlib.Path(OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  measured = []
  print(f"{'events':>12} {'MiB':>7} {'seconds':>8} {'events a second':>16} {'peak MiB':>9}")
  for events in map(int, EVENTS.value):
    raw = output / f"events-{events}.json"
    write_events(raw, events)
    found = measure(raw, output / "dataset")
    measured.append({"events": events, "raw_mib": raw.stat().st_size / 2**20, **found})
    print(
      f"{events:12,} {measured[-1]['raw_mib']:7,.0f} {found['seconds']:8.1f} "
      f"{events / found['seconds']:16,.0f} {found['peak_mib']:9,.0f}",
      flush=True,
    )
    raw.unlink()
  timing.write(output / "importing.json", {**timing.environment(), "measured": measured})


def write_events(path: pathlib.Path, events: int) -> None:
  """Users at random, items by a power of their place, times at random within ten years."""
  rng = np.random.default_rng(0)
  items = max(events // EVENTS_AN_ITEM, 1)
  with path.open("w") as file:
    for start in range(0, events, CHUNK):
      n = min(CHUNK, events - start)
      user_N = rng.integers(0, max(events // EVENTS_A_USER, 1), n).tolist()
      item_N = (items * rng.random(n) ** 2).astype(int).tolist()
      time_N = rng.integers(1_100_000_000, 1_400_000_000, n).tolist()
      file.writelines(
        f'{{"reviewerID": "A{u:012d}", "asin": "B{i:09d}", "reviewText": "Works well, would buy it '
        f'again.", "overall": 5.0, "unixReviewTime": {t}}}\n'
        for u, i, t in zip(user_N, item_N, time_N, strict=True)
      )


def measure(raw: pathlib.Path, dataset: pathlib.Path) -> dict[str, float]:
  """Wall seconds of the command and the largest memory of any that ran so far: the events of one
  measurement are more than those of the one before."""
  shutil.rmtree(dataset, ignore_errors=True)
  command = [
    "-m",
    "mmesid_jax.prepare",
    "--config=configs/prepare.py",
    f"--output={dataset.resolve()}",
  ]
  options = ["--config.source=amazon2014", f"--config.events={raw.resolve()}"]
  start = time.perf_counter()
  subprocess.run([sys.executable, *command, *options], cwd=ROOT, check=True, capture_output=True)
  seconds = time.perf_counter() - start
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
  return {"seconds": seconds, "peak_mib": peak}


if __name__ == "__main__":
  command_line.run_command(main)
