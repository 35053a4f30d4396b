"""Copies a trained workdir for others, with a model card: a folder, a file, or a hub.

Examples:
  python -m mmesid_jax.push --workdir=runs/quickstart --with_data --output=quickstart.zip
  python -m mmesid_jax.push --workdir=runs/beauty --repo=NAME/mmesid-beauty

The copy holds the weights, the configuration without the paths of this machine, and README.md, the
model card, with the figures of evaluation.json. --output=FOLDER writes a folder in the layout of a
Hugging Face repository, a name that ends in .zip one file; --repo uploads it with the token of
`hf auth login`, into a private repository unless --public is given.

--with_data adds the data set: the histories of all users, and keys and titles of items. Without it
others can rank items by number, and use their own --data_dir.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.errors import UserError

WORKDIR = paths.define_path("workdir", None, "A folder that the command train wrote.")
OUTPUT = paths.define_path("output", None, "The folder or .zip file to write.")
REPO = flags.DEFINE_string("repo", None, "A repository of the Hugging Face hub: OWNER/NAME.")
PUBLIC = flags.DEFINE_bool("public", False, "Make a public repository, or use one.")
WITH_DATA = flags.DEFINE_bool("with_data", False, "Add the data: histories, keys and titles.")
DATA_DIR = paths.define_path("data_dir", None, "Where the data is now, if it has moved.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a .zip file that exists.")
GROUPS = {
  "Required": "workdir=DIR",
  "Where; exactly one": "output=PLACE repo=OWNER/NAME",
  "What": "with_data data_dir=DIR public overwrite",
}


def main(argv: list[str]) -> None:
  del argv
  command_line.require_flags("workdir", ("output", "repo"))
  if PUBLIC.value and REPO.value is None:
    raise UserError("--public: belongs to --repo")
  if OVERWRITE.value and OUTPUT.value is None:
    raise UserError("--overwrite: belongs to --output")
  from mmesid_jax.reports import shared_workdir

  path = pathlib.Path(WORKDIR.value)
  options = {"with_data": WITH_DATA.value, "data_dir": DATA_DIR.value}
  if REPO.value is not None:
    shared_workdir.upload(path, REPO.value, public=PUBLIC.value, **options)
  else:
    output = pathlib.Path(OUTPUT.value)
    shared_workdir.write_shared(path, output, overwrite=OVERWRITE.value, **options)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
