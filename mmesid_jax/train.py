"""Trains the stages of a configuration: python -m mmesid_jax.train --config=configs/x.py
--workdir=DIR

With --plan=KIND instead says whether the recommender fits on such devices, and how long it takes.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for artifacts, checkpoints and logs.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Redo stages that another configuration made.")
PLAN = flags.DEFINE_string("plan", None, "Kind of device, h200 say: train nothing, say what fits.")
DEVICES = flags.DEFINE_list("plan_devices", "1,8,64,256", "Numbers of devices to plan for.")
MFU = flags.DEFINE_float("plan_mfu", 0.4, "Share of the peak that the plan's times stand on.")
COMPILE = flags.DEFINE_bool("plan_compile", False, "Also ask the compiler for TPUs: minutes.")
ROWS = flags.DEFINE_integer("plan_rows_a_device", None, "Rows grow with the devices sharing them.")
command_line.define_process_flags()
flags.mark_flags_as_required(["config"])


def main(argv: list[str]) -> None:
  del argv
  if PLAN.value is not None:
    from mmesid_jax.planning import plan_report

    options = {"devices": DEVICES.value, "mfu": MFU.value, "rows_a_device": ROWS.value}
    plan_report.run(CONFIG.value, PLAN.value, **options, compiled=COMPILE.value)
    return
  if WORKDIR.value is None:
    raise UserError("--workdir is missing; it must be given, but for --plan")
  from mmesid_jax import pipeline  # after parsing: a wrong flag is refused before JAX is loaded
  from mmesid_jax.parallel import processes

  heartbeat_seconds = CONFIG.value.run.heartbeat_seconds
  processes.start(command_line.process_environment(), heartbeat_seconds=heartbeat_seconds)
  pipeline.run(CONFIG.value, pathlib.Path(WORKDIR.value), overwrite=OVERWRITE.value)


if __name__ == "__main__":
  command_line.run_command(main)
