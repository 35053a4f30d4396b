"""Puts your own item vectors into the order of a data set, or converts PyTorch files.

Examples:
  python -m mmesid_jax.vectors join --data=DIR --vectors=mine.parquet --output=DIR/text.npy
  python -m mmesid_jax.vectors convert --input=x.pt --output=x.npy

join: --vectors is .parquet (a column of keys and one of lists, or many of numbers), .safetensors
with one vector per key, or a table, .npy or .safetensors, with --keys=FILE. Row i of the output
belongs to item i, row 0 is zeros.

convert: makes a table from what PyTorch or pickle saved, without unpickling it.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.errors import UserError

DATA = paths.define_path("data", None, "A prepared data set: a folder with items.jsonl.")
VECTORS = paths.define_paths("vectors", None, "Vectors: .parquet, .npy or .safetensors.")
KEYS = paths.define_paths(
  "keys", None, "Keys of the rows: text with a key a line, a .json list, or .npy."
)
KEY = flags.DEFINE_enum("key", "key", ["key", "asin"], "Field of items.jsonl that holds the key.")
KEY_COLUMN = flags.DEFINE_string("key_column", None, "Column of a .parquet that holds the keys.")
VECTOR_COLUMNS = flags.DEFINE_list(
  "vector_columns", None, "Columns of a .parquet that hold the vectors; `text_*` works too."
)
DTYPE = flags.DEFINE_enum(
  "dtype", "float16", ["float16", "float32", "bfloat16"], "Type of the numbers written."
)
MISSING = flags.DEFINE_enum(
  "missing", "error", ["error", "zero", "mean"], "What items without a vector get."
)
INPUT = paths.define_path("input", None, "The file to convert: .pt, .pth, .bin or .pkl.")
NAME = flags.DEFINE_string("name", None, "The tensor to take, where there are several.")
OUTPUT = paths.define_path(
  "output", None, "The table to write: .npy, or .safetensors, which bfloat16 needs."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that exists.")

REQUIRED = {"join": ("data", "vectors", "output"), "convert": ("input", "output")}
OPTIONAL = {
  "join": ("keys", "key", "key_column", "vector_columns", "dtype", "missing", "overwrite"),
  "convert": ("name", "overwrite"),
}
GROUPS = {
  "join and convert, required": "output=FILE",
  "join and convert": "overwrite",
  "join, required": "data=DIR vectors=FILE",
  "join": "keys=FILE key key_column=COLUMN vector_columns=COLUMNS dtype missing",
  "convert, required": "input=FILE",
  "convert": "name=TENSOR",
}


def main(argv: list[str]) -> None:
  subcommand = argv[1]
  _check_flags(subcommand)
  output = pathlib.Path(OUTPUT.value)
  if subcommand == "convert":
    from mmesid_jax.features.torch_files.torch_table import convert_torch_file

    return convert_torch_file(
      pathlib.Path(INPUT.value), output, name=NAME.value, overwrite=OVERWRITE.value
    )
  from mmesid_jax.features.join_by_key import join_vectors

  join_vectors(
    pathlib.Path(DATA.value),
    [pathlib.Path(path) for path in VECTORS.value],
    output,
    keys=[pathlib.Path(path) for path in KEYS.value or ()],
    key=KEY.value,
    key_column=KEY_COLUMN.value,
    vector_columns=VECTOR_COLUMNS.value,
    dtype=DTYPE.value,
    missing=MISSING.value,
    overwrite=OVERWRITE.value,
  )


def _check_flags(subcommand: str) -> None:
  """Raises UserError for a flag that is missing, and one that only the other subcommand has."""
  command_line.require_flags(*REQUIRED[subcommand])
  known = REQUIRED[subcommand] + OPTIONAL[subcommand]
  for name in {name for names in (REQUIRED, OPTIONAL) for s in names for name in names[s]}:
    if flags.FLAGS[name].present and name not in known:
      raise UserError(f"--{name}: not a flag of {subcommand}")


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS, subcommands=tuple(REQUIRED))
