"""Counts again, with the events that came after training; the network stays as it is.

Examples:
  python -m mmesid_jax.refresh --workdir=runs/shop --data=shop_today
  python -m mmesid_jax.refresh --workdir=runs/shop --data=shop_today --data_dir=shop_as_trained

Nothing is trained. --data continues the data set of training: the same items and users, later
events at the ends of their histories, new users after the others. The command recommend serves the
new counts from then on, until DIR/refreshed_counts.safetensors is deleted. The commands train and
evaluate do not read them, because they count the held-out items, too.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths

WORKDIR = paths.define_path("workdir", None, "A folder that the command train wrote.")
DATA = paths.define_path("data", None, "A dataset folder that continues the one of training.")
DATA_DIR = paths.define_path("data_dir", None, "Where the data of training is, if it has moved.")
flags.mark_flags_as_required(["workdir", "data"])
GROUPS = {"Required": "workdir=DIR data=DIR", "Optional": "data_dir=DIR"}


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.serving import refreshed_counts

  refreshed_counts.refresh_counts(
    pathlib.Path(WORKDIR.value), pathlib.Path(DATA.value), DATA_DIR.value
  )


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
