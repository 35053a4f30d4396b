r"""Writes the catalogue's semantic IDs for other programs, or makes those of new items.

Examples:
  python -m mmesid_jax.semantic_ids export --workdir=DIR --output=ids.parquet
  python -m mmesid_jax.semantic_ids encode --workdir=DIR --features=text=new.npy \
    --output=new.safetensors

export: one row per item, in Parquet or (.jsonl) JSON lines: its id, its key and title where the
data set has them, and its codes of every modality.

encode: a table of new items has one row each and no padding row. --features may be given once for
every modality; a modality that is not given (new items have no collaborative vectors) is read as
the mean of the training items' vectors. `recommend --new_items=new.safetensors` recommends them.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.errors import UserError

WORKDIR = paths.define_path("workdir", None, "A folder that the command train wrote.")
OUTPUT = paths.define_path(
  "output", None, "The file to write: .parquet or .jsonl (export), .safetensors (encode)."
)
FEATURES = flags.DEFINE_multi_string(
  "features", None, "Vectors of a modality: .npy or .safetensors, [new items, width]."
)
KEY = flags.DEFINE_string("key", None, "Field of items.jsonl that holds the keys, if not `key`.")
DATA_DIR = paths.define_path("data_dir", None, "Where the data is now, if it has moved.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that exists.")
GROUPS = {
  "Required": "workdir=DIR output=FILE",
  "encode and export": "overwrite",
  "encode, required": "features=MODALITY=FILE",
  "export": "key=FIELD data_dir=DIR",
}


def main(argv: list[str]) -> None:
  subcommand = argv[1]
  needed = ("features",) if subcommand == "encode" else ()
  command_line.require_flags("workdir", "output", *needed)
  others = (FEATURES,) if subcommand == "export" else (KEY, DATA_DIR)
  if given := [flag.name for flag in others if flag.value is not None]:
    raise UserError(f"--{given[0]}: {subcommand} takes none")
  workdir, output = pathlib.Path(WORKDIR.value), pathlib.Path(OUTPUT.value)
  if subcommand == "export":
    from mmesid_jax.reports import code_export

    code_export.export_codes(
      workdir, output, data_dir=DATA_DIR.value, key=KEY.value, overwrite=OVERWRITE.value
    )
    return
  from mmesid_jax.stages import new_item_codes

  new_item_codes.encode_and_write(workdir, FEATURES.value, output, overwrite=OVERWRITE.value)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS, subcommands=("encode", "export"))
