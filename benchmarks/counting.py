"""Seconds and memory to count which item follows which, as the stage counts does.

  python benchmarks/counting.py --events=10000000

Invented users, with histories as long as on Beauty; 100,000 items. Memory is what counting takes
beside the events, its result among it. The seconds of the processor do not depend on what else the
machine does.
"""

import time

import users as population
from absl import flags
from host_memory import host_peak

from mmesid_jax.config import command_line, default_config
from mmesid_jax.data.dataset import all_events
from mmesid_jax.data.transitions import count_transitions
from mmesid_jax.stages.evidence_stages import COUNTS

EVENTS = flags.DEFINE_integer("events", 10_000_000, "Number of events.", lower_bound=100)
ITEMS = flags.DEFINE_integer("items", 100_000, "Number of items.", lower_bound=1)
EVENTS_OF_A_USER = 8.88  # on average, of the invented users


def main(argv: list[str]) -> None:
  del argv
  number = max(round(EVENTS.value / EVENTS_OF_A_USER), 1)
  dataset = population.read(None, users=number, items=ITEMS.value)
  item_E, user_E = all_events(dataset)
  start = time.perf_counter(), time.process_time()
  with host_peak() as taken:
    table = count_transitions(
      item_E,
      user_E,
      dataset.num_items,
      window=COUNTS.OPTIONS["window"][0],
      decay=COUNTS.OPTIONS["distance_decay"][0],
      followers=default_config().counts.followers,
    )
  elapsed, processor = time.perf_counter() - start[0], time.process_time() - start[1]
  print(
    f"{len(item_E):,} events of {number:,} users, {dataset.num_items:,} items: {elapsed:.1f} s, "
    f"{processor:.1f} s of the processor, at most {taken['bytes'] / 2**30:.2f} GiB, "
    f"{table.kept:.1%} of the counts kept"
  )


if __name__ == "__main__":
  command_line.run_command(main)
