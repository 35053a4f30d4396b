"""Turns raw events into a dataset folder that train reads, or checks such a folder.

Examples:
  python -m mmesid_jax.prepare --config=prepare --config.events=orders.csv --output=data/shop
  python -m mmesid_jax.prepare --check=data/shop

--check reads all that training would read and lists everything that is wrong.

--tfds=DIR writes a TensorFlow dataset, DIR/tfds, for a folder that exists already; for a new
folder, add --config.tfds=True to --output. With --tfds=DIR --beam="--runner=DirectRunner", Apache
Beam writes it.
"""

import pathlib

from absl import flags

from mmesid_jax.config import arguments, command_line, paths
from mmesid_jax.errors import UserError
from mmesid_jax.ingest.settings import default_settings

CONFIG = arguments.define_config_file(
  None, "What to read and keep: `prepare`, or a file like it.", default_settings
)
OUTPUT = paths.define_path(
  "output", None, "The folder to write; it must not exist. Needs --config."
)
TFDS = paths.define_path("tfds", None, "A prepared folder that gets a TensorFlow dataset.")
BEAM = flags.DEFINE_string("beam", None, "Let Apache Beam write, with these flags of its own.")
CHECK = paths.define_path("check", None, "A folder to check.")
GROUPS = {
  "What to do; exactly one": "output=DIR check=DIR tfds=DIR",
  "With --output": "config=NAME",
  "With --tfds": "beam=FLAGS",
}


def main(argv: list[str]) -> None:
  del argv
  command_line.require_flags(("output", "check", "tfds"))
  if CHECK.value is not None:
    from mmesid_jax.data.folder import check

    check.check_folder(CHECK.value)
    return
  from mmesid_jax.ingest import prepared_folder

  if TFDS.value is not None:
    prepared_folder.write_tfds(pathlib.Path(TFDS.value), BEAM.value)
    return
  if BEAM.value is not None:
    raise UserError(
      "--beam: writes the TensorFlow dataset of a folder that exists; give it by --tfds"
    )
  command_line.require_flags("config")
  prepared_folder.prepare_folder(CONFIG.value, pathlib.Path(OUTPUT.value))


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
