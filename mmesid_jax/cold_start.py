"""How well items that training never saw are recommended: python -m mmesid_jax.cold_start
--config=configs/x.py --workdir=DIR [--fraction=0.05] [--split_seed=0]

Holds items out, trains on what is left of the data in DIR, appends the items to the trained model
and ranks them; the same command goes on where it was stopped.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from mmesid_jax.config import command_line

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all that is written.")
FRACTION = flags.DEFINE_float("fraction", 0.05, "Which share of the items is held out.")
SPLIT_SEED = flags.DEFINE_integer("split_seed", 0, "Decides which items those are.", lower_bound=0)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Redo what another split or configuration made.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.experiments import cold_start_run

  cold_start_run.run(
    CONFIG.value,
    pathlib.Path(WORKDIR.value),
    fraction=FRACTION.value,
    split_seed=SPLIT_SEED.value,
    overwrite=OVERWRITE.value,
  )


if __name__ == "__main__":
  command_line.run_command(main)
