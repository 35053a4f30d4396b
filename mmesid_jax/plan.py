"""Says, without training, what fits on a kind of device and how long an epoch takes.

Examples:
  python -m mmesid_jax.plan --config=beauty --config.data.dir=DIR --device=h100
  python -m mmesid_jax.plan --config=beauty --config.data.dir=DIR --device=v5e --devices=4,16

Works from shapes alone: no accelerator is used, no weight is read. The memory of the recommender
stage, and of counts, content and blend, is shown for the first number of devices, then the possible
meshes for all of them.
"""

from absl import flags

from mmesid_jax.config import arguments, command_line, default_config

CONFIG = arguments.define_config_file(
  None, "Configuration: a name, as in configs/, or a file.", default_config
)
DEVICE = flags.DEFINE_string(
  "device", None, "Kind of device: h200, h100, a100-40g, a100-80g, v5e, v5p, v6e, ..."
)
DEVICES = flags.DEFINE_list("devices", "1,8,64,256", "Numbers of devices.")
MFU = flags.DEFINE_float(
  "mfu",
  0.4,
  "Assumed share of the device's peak FLOP/s, in (0, 1].",
  lower_bound=0,
  upper_bound=1,
)
ROWS = flags.DEFINE_integer(
  "rows_per_device",
  None,
  "Rows of a batch for each device that shares them; the batch then grows.",
  lower_bound=1,
  upper_bound=1_000_000,
)
COMPILE = flags.DEFINE_bool(
  "compile", False, "Also compile a step for TPUs, for minutes; needs mmesid_jax[tpu], but no TPU."
)
GROUPS = {
  "Required": "config=NAME[:PRESET] device=KIND",
  "Optional": "devices mfu rows_per_device compile",
}


def main(argv: list[str]) -> None:
  del argv
  command_line.require_flags("config", "device")
  from mmesid_jax.planning import plan_report  # after parsing: JAX is loaded for a good command

  options = {"devices": DEVICES.value, "mfu": MFU.value, "rows_per_device": ROWS.value}
  plan_report.print_plan(CONFIG.value, DEVICE.value, **options, compiled=COMPILE.value)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
