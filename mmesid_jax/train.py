"""Trains the stages of a configuration: python -m mmesid_jax.train --config=configs/x.py
--workdir=DIR"""

import pathlib

from absl import flags
from ml_collections import config_flags

from mmesid_jax import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for artifacts, checkpoints and logs.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Redo stages that another configuration made.")
cli.define_process_flags()
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax import pipeline  # after parsing: a wrong flag is refused before JAX is loaded
  from mmesid_jax.parallel import processes

  heartbeat_seconds = CONFIG.value.run.heartbeat_seconds
  processes.start(cli.process_environment(), heartbeat_seconds=heartbeat_seconds)
  pipeline.run(CONFIG.value, pathlib.Path(WORKDIR.value), overwrite=OVERWRITE.value)


if __name__ == "__main__":
  cli.run(main)
