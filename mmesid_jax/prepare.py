"""Raw events to a dataset folder: python -m mmesid_jax.prepare --config=configs/prepare.py
--config.source=amazon2014 --config.events=reviews_Beauty.json.gz --output=DIR

--check=DIR reads everything in a folder that training would, and tells all that is wrong with it.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from mmesid_jax import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "What to read, keep.", lock_config=True)
OUTPUT = flags.DEFINE_string("output", None, "The folder to be written; it must not exist.")
flags.mark_flags_as_required(["config", "output"])


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax import preparing

  preparing.run(CONFIG.value, pathlib.Path(OUTPUT.value))


if __name__ == "__main__":
  cli.run(main)
