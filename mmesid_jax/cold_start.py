"""Measures how well items that training never saw are recommended.

Examples:
  python -m mmesid_jax.cold_start --config=quickstart --workdir=runs/cold
  python -m mmesid_jax.cold_start --config=beauty --config.data.dir=DIR --workdir=runs/cold_beauty

Holds items out, trains on the rest of the data, adds the items to the trained model and ranks them.
The same command continues a run that was stopped.
"""

import pathlib

from absl import flags

from mmesid_jax.config import arguments, command_line, default_config, paths

CONFIG = arguments.define_config_file(
  None, "Configuration: a name, as in configs/, or a file.", default_config
)
WORKDIR = paths.define_path("workdir", None, "Folder for everything that is written.")
FRACTION = flags.DEFINE_float(
  "fraction", 0.05, "Share of the items that is held out.", lower_bound=0, upper_bound=1
)
SPLIT_SEED = flags.DEFINE_integer(
  "split_seed", 0, "Decides which items those are.", lower_bound=0, upper_bound=2**32 - 1
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Redo what another split or configuration made.")
flags.mark_flags_as_required(["config", "workdir"])
GROUPS = {
  "Required": "config=NAME[:PRESET] workdir=DIR",
  "Optional": "fraction split_seed overwrite",
}


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.experiments import cold_start_run

  cold_start_run.run_cold_start(
    CONFIG.value,
    pathlib.Path(WORKDIR.value),
    fraction=FRACTION.value,
    split_seed=SPLIT_SEED.value,
    overwrite=OVERWRITE.value,
  )


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
