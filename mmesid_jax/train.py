"""Trains the stages of a configuration; models, checkpoints and logs go to a folder.

Examples:
  python -m mmesid_jax.train --config=quickstart --workdir=runs/quickstart
  python -m mmesid_jax.train --config=beauty:paper --config.data.dir=DIR --workdir=runs/paper
  python -m mmesid_jax.train --config=beauty --explain=recommender.prompt

The same command continues a run that was stopped, and skips stages that are finished. --refit then
trains all of them again on training and validation items, as for many published figures.
"""

import pathlib

from absl import flags

from mmesid_jax.config import arguments, command_line, default_config, paths
from mmesid_jax.config.explain import explain
from mmesid_jax.display import reporter

CONFIG = arguments.define_config_file(
  None, "Configuration: a name, as in configs/, or a file.", default_config
)
WORKDIR = paths.define_path("workdir", None, "Folder for models, checkpoints and logs.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Redo stages that another configuration made.")
REFIT = flags.DEFINE_bool("refit", False, "Then train again with the validation items, and test.")
EXPLAIN = flags.DEFINE_string("explain", None, "Explain all keys, or those under KEY; no training.")
flags.FLAGS["explain"].boolean = True  # its value may be left out
command_line.define_process_flags()
GROUPS = {
  "Required": "config=NAME[:PRESET] workdir=DIR",
  "Optional": "refit overwrite explain=KEY",
} | command_line.PROCESS_GROUP


def main(argv: list[str]) -> None:
  del argv
  if EXPLAIN.value not in (None, "false"):
    prefix = "" if EXPLAIN.value == "true" else EXPLAIN.value
    reporter.info(explain(CONFIG.value or default_config(), prefix))
    return
  command_line.require_flags("config", "workdir")
  from mmesid_jax import pipeline  # after parsing: a wrong flag is refused before JAX is loaded
  from mmesid_jax.parallel import processes

  heartbeat_seconds = CONFIG.value.run.heartbeat_seconds
  processes.start(command_line.process_environment(), heartbeat_seconds=heartbeat_seconds)
  path, options = pathlib.Path(WORKDIR.value), {"overwrite": OVERWRITE.value, "refit": REFIT.value}
  pipeline.run_pipeline(CONFIG.value, path, **options)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
