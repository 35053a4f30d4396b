"""Writes the trained backbone, with LoRA merged in, as a Hugging Face model folder.

Examples:
  python -m mmesid_jax.export --workdir=runs/llama3 --output=llama3-8b-beauty
  python -m mmesid_jax.export --workdir=runs/quickstart --output=small-llama
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths

WORKDIR = paths.define_path("workdir", None, "A folder that the command train wrote.")
OUTPUT = paths.define_path("output", None, "The folder to write.")
flags.mark_flags_as_required(["workdir", "output"])
GROUPS = {"Required": "workdir=DIR output=DIR"}


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.reports import export_backbone

  export_backbone.export_backbone(pathlib.Path(WORKDIR.value), pathlib.Path(OUTPUT.value))


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
