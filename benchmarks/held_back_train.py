"""Trains as the command train does, but holds every checkpoint back before it gets its name:
HOLD_SECONDS=2 python benchmarks/held_back_train.py --config=CONFIG --workdir=DIR

The time is drawn for every checkpoint, between 0 and HOLD_SECONDS, so checkpoints that are
written at the same time get their names in any order. For benchmarks/torture.py.
"""

import os
import random
import runpy
import time

from mmesid_jax.training import checkpoint

HOLD_SECONDS = float(os.environ["HOLD_SECONDS"])


def main() -> None:
  write_digests = checkpoint._write_digests

  def hold_back(directory) -> None:
    write_digests(directory)
    time.sleep(random.uniform(0, HOLD_SECONDS))

  checkpoint._write_digests = hold_back
  runpy.run_module("mmesid_jax.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
