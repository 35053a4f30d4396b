"""Writes the trained backbone, LoRA merged in, as a Hugging Face directory: python -m
mmesid_jax.export --workdir=DIR --output=NEW_DIR"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that mmesid_jax.train wrote.")
OUTPUT = flags.DEFINE_string("output", None, "The directory to be made.")
flags.mark_flags_as_required(["workdir", "output"])


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.reports import export_backbone

  export_backbone.run(pathlib.Path(WORKDIR.value), pathlib.Path(OUTPUT.value))


if __name__ == "__main__":
  command_line.run_command(main)
