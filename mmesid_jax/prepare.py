"""Raw events to a dataset folder: python -m mmesid_jax.prepare --config=configs/prepare.py
--config.source=amazon2014 --config.events=reviews_Beauty.json.gz --output=DIR

--check=DIR reads everything in a folder that training would, and tells all that is wrong with it.
--tfds=DIR writes a TensorFlow dataset, DIR/tfds, from a folder that is there already, as
--config.tfds=True does while the folder is written; --beam="--runner=DirectRunner" by Apache Beam.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "What to read, keep.", lock_config=True)
OUTPUT = flags.DEFINE_string("output", None, "The folder to be written; it must not exist.")
TFDS = flags.DEFINE_string("tfds", None, "A prepared folder that gets a TensorFlow dataset.")
BEAM = flags.DEFINE_string("beam", None, "Flags of Apache Beam, which then writes, with --tfds.")
CHECK = flags.DEFINE_string("check", None, "A folder; what is wrong with it is told at once.")
flags.mark_flags_as_mutual_exclusive(["output", "tfds", "check"], required=True)


def main(argv: list[str]) -> None:
  del argv
  if CHECK.value is not None:
    from mmesid_jax.data.folder import check

    check.check_folder(CHECK.value)
    return
  from mmesid_jax.ingest import prepared_folder

  if TFDS.value is not None:
    prepared_folder.write_tfds(pathlib.Path(TFDS.value), BEAM.value)
    return
  if BEAM.value is not None:
    raise UserError("--beam: writes the TensorFlow dataset of a folder that is there; name --tfds")
  if CONFIG.value is None:
    raise UserError("--config is missing; it must be given with --output")
  prepared_folder.prepare_folder(CONFIG.value, pathlib.Path(OUTPUT.value))


if __name__ == "__main__":
  command_line.run_command(main)
