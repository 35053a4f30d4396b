"""Semantic IDs, for other programs and of items that training never saw:

python -m mmesid_jax.semantic_ids export --workdir=DIR --output=ids.parquet

writes a row an item, to Parquet or (.jsonl) JSON lines: its id, its key and title where the data
set has them, and its codes of every modality.

python -m mmesid_jax.semantic_ids encode --workdir=DIR --features=text=NEW.npy
--output=NEW.safetensors

makes those of new items. A table of new items has one row each and no padding row. --features may
be given once for every modality; one that is not given (new items have no collaborative vectors) is
read as the mean of the training items' vectors. mmesid_jax.recommend --new_items=NEW.safetensors
recommends the items.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that mmesid_jax.train wrote.")
OUTPUT = flags.DEFINE_string(
  "output", None, "The file to be written: .parquet or .jsonl (export), .safetensors (encode)."
)
FEATURES = flags.DEFINE_multi_string(
  "features",
  None,
  "MODALITY=FILE: .npy or .safetensors, [new items, width], no padding row (encode).",
)
KEY = flags.DEFINE_string(
  "key", None, "Field of items.jsonl that holds the keys, if not `key` (export)."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data is now, if it has moved (export).")
flags.mark_flags_as_required(["workdir", "output"])


def main(argv: list[str]) -> None:
  subcommand = argv[1]
  others = (FEATURES,) if subcommand == "export" else (KEY, DATA_DIR)
  if given := [flag.name for flag in others if flag.value is not None]:
    raise UserError(f"--{given[0]}: {subcommand} takes none")
  workdir, output = pathlib.Path(WORKDIR.value), pathlib.Path(OUTPUT.value)
  if subcommand == "export":
    from mmesid_jax.reports import code_export

    code_export.run(workdir, output, data_dir=DATA_DIR.value, key=KEY.value)
    return
  if FEATURES.value is None:
    raise UserError("--features is missing; it must be given")
  from mmesid_jax.stages import new_item_codes

  new_item_codes.encode_and_write(workdir, FEATURES.value, output)


if __name__ == "__main__":
  command_line.run_command(main, subcommands=("encode", "export"))
