"""Brings your own item vectors into a data set's order, by key: python -m mmesid_jax.vectors join
--data=DIR --vectors=FILE --output=DIR/text.npy

FILE is .parquet (a column of keys and one of lists, or many of numbers), .safetensors with one
vector a key, or a table, .npy or .safetensors, with --keys=FILE. --vectors (and --keys) may be
given several times. Row i of the output belongs to item i, row 0 is zeros.

What PyTorch or pickle saved becomes a table first, without being unpickled:
python -m mmesid_jax.vectors convert --input=x.pt --output=x.npy
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

DATA = flags.DEFINE_string("data", None, "join: a prepared data set, a folder with items.jsonl.")
VECTORS = flags.DEFINE_multi_string("vectors", None, "join: .parquet, .npy or .safetensors.")
KEYS = flags.DEFINE_multi_string(
  "keys", None, "join: whose rows these are: text with a key a line, .json list, or .npy."
)
KEY = flags.DEFINE_enum("key", "key", ["key", "asin"], "join: what items.jsonl calls the key.")
KEY_COLUMN = flags.DEFINE_string("key_column", None, "join: the column of keys of a .parquet.")
VECTOR_COLUMNS = flags.DEFINE_list(
  "vector_columns", None, "join: the column or columns of vectors of a .parquet; `text_*` too."
)
DTYPE = flags.DEFINE_enum(
  "dtype", "float16", ["float16", "float32", "bfloat16"], "join: numbers of the output."
)
MISSING = flags.DEFINE_enum(
  "missing", "error", ["error", "zero", "mean"], "join: what items without a vector get."
)
INPUT = flags.DEFINE_string("input", None, "convert: .pt, .pth, .bin or .pkl.")
NAME = flags.DEFINE_string("name", None, "convert: which tensor, where there are several.")
OUTPUT = flags.DEFINE_string(
  "output", None, "The table to be written: .npy, or .safetensors, which bfloat16 needs."
)

REQUIRED = {"join": ("data", "vectors", "output"), "convert": ("input", "output")}
OPTIONAL = {
  "join": ("keys", "key", "key_column", "vector_columns", "dtype", "missing"),
  "convert": ("name",),
}


def main(argv: list[str]) -> None:
  subcommand = argv[1]
  _check_flags(subcommand)
  output = pathlib.Path(OUTPUT.value)
  if subcommand == "convert":
    from mmesid_jax.features.torch_files.torch_table import convert_torch_file

    return convert_torch_file(pathlib.Path(INPUT.value), output, name=NAME.value)
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
  )


def _check_flags(subcommand: str) -> None:
  """Raises UserError for a flag that is missing, and one that only the other subcommand has."""
  for name in REQUIRED[subcommand]:
    if not flags.FLAGS[name].value:
      raise UserError(f"--{name} is missing; {subcommand} needs it")
  known = REQUIRED[subcommand] + OPTIONAL[subcommand]
  for name in {name for names in (REQUIRED, OPTIONAL) for s in names for name in names[s]}:
    if flags.FLAGS[name].present and name not in known:
      raise UserError(f"--{name}: not a flag of {subcommand}")


if __name__ == "__main__":
  command_line.run_command(main, subcommands=tuple(REQUIRED))
