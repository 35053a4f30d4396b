"""Trains variants of a configuration and compares them: python -m mmesid_jax.ablate
--config=configs/ablations.py --workdir=DIR --results=DIR [--variants=a,b] [--seeds=0,1]"""

import pathlib

from absl import flags
from ml_collections import config_flags

from mmesid_jax.config import command_line

CONFIG = config_flags.DEFINE_config_file("config", None, "Base, seeds, variants.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs, one each.")
RESULTS = flags.DEFINE_string("results", None, "Folder for a small JSON file a run, and table.md.")
VARIANTS = flags.DEFINE_list("variants", None, "Only these; base always runs.")
SEEDS = flags.DEFINE_list("seeds", None, "Only these of the configuration's seeds.")
TABLE = flags.DEFINE_bool("table", False, "Train nothing: the table of what RESULTS holds.")
flags.mark_flags_as_required(["config", "results"])


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.experiments import ablations

  results = pathlib.Path(RESULTS.value)
  if TABLE.value:
    ablations.show(CONFIG.value, results)
    return
  ablations.run(CONFIG.value, WORKDIR.value, results, variants=VARIANTS.value, seeds=SEEDS.value)


if __name__ == "__main__":
  command_line.run_command(main)
