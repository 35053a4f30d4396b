r"""Trains variants of a configuration and compares them in a table.

Examples:
  python -m mmesid_jax.ablate --config=ablations --config.base.data.dir=DIR \
    --workdir=runs/ablations --results=results/ablations
  python -m mmesid_jax.ablate --config=ablations --results=results/ablations --table

The same command continues where it was stopped; the table is printed after every run.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from mmesid_jax.config import arguments, command_line, default_config, paths
from mmesid_jax.errors import UserError

CONFIG = arguments.define_config_file(
  None,
  "Base, seeds and variants: a name, as in configs/, or a file.",
  lambda: ConfigDict({"base": default_config(), "seeds": (0,), "variants": {}, "sums": {}}),
)
WORKDIR = paths.define_path("workdir", None, "Folder for the runs; not needed with --table.")
RESULTS = paths.define_path("results", None, "Folder for a small JSON file per run and table.md.")
VARIANTS = flags.DEFINE_list("variants", None, "Only these; base always runs.")
SEEDS = flags.DEFINE_list("seeds", None, "Only these of the configuration's seeds.")
TABLE = flags.DEFINE_bool("table", False, "Train nothing; print the table of --results.")
GROUPS = {
  "Required": "config=NAME results=DIR workdir=DIR",
  "Optional": "variants seeds table",
}


def main(argv: list[str]) -> None:
  del argv
  command_line.require_flags("config", "results", *(() if TABLE.value else ("workdir",)))
  for flag in (VARIANTS, SEEDS):
    if TABLE.value and flag.value is not None:
      raise UserError(f"--{flag.name}: not with --table, which shows all results")
  from mmesid_jax.experiments import ablations

  results = pathlib.Path(RESULTS.value)
  if TABLE.value:
    ablations.print_table(CONFIG.value, results)
    return
  options = {"variants": VARIANTS.value, "seeds": SEEDS.value}
  ablations.run_ablations(CONFIG.value, pathlib.Path(WORKDIR.value), results, **options)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
