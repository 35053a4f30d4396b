"""Makes a workdir of what `push` wrote: a folder, a file, or a repository of a hub.

Examples:
  python -m mmesid_jax.pull --source=quickstart.zip --workdir=runs/quickstart
  python -m mmesid_jax.pull --repo=NAME/mmesid-beauty --workdir=runs/beauty

Only the files of a workdir are copied, and nothing of them is run. A model with a pretrained
backbone needs --checkpoint, the folder of that backbone.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.errors import UserError

WORKDIR = paths.define_path("workdir", None, "The folder to make.")
SOURCE = paths.define_path("source", None, "A folder or .zip file that push wrote.")
REPO = flags.DEFINE_string("repo", None, "A repository of the Hugging Face hub: OWNER/NAME.")
REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of the repository.")
CHECKPOINT = paths.define_path("checkpoint", None, "Folder of the pretrained backbone, if any.")
GROUPS = {
  "Required": "workdir=DIR",
  "From where; exactly one": "source=PLACE repo=OWNER/NAME",
  "Optional": "revision checkpoint=DIR",
}


def main(argv: list[str]) -> None:
  del argv
  command_line.require_flags("workdir", ("source", "repo"))
  if REVISION.value is not None and REPO.value is None:
    raise UserError("--revision: belongs to --repo")
  from mmesid_jax.reports import shared_workdir

  path, checkpoint = pathlib.Path(WORKDIR.value), CHECKPOINT.value
  if REPO.value is not None:
    shared_workdir.download(REPO.value, path, revision=REVISION.value, checkpoint=checkpoint)
  else:
    shared_workdir.read_shared(pathlib.Path(SOURCE.value), path, checkpoint=checkpoint)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
