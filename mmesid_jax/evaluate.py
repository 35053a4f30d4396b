"""Ranks the held-out items again: python -m mmesid_jax.evaluate --workdir=DIR
[--split=valid|test]"""

import pathlib

from absl import flags

from mmesid_jax import cli

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that mmesid_jax.train wrote.")
SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "Which held-out item of every user.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data is now, if it has moved.")
flags.mark_flag_as_required("workdir")


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax import pipeline

  pipeline.evaluate(pipeline.reopen(pathlib.Path(WORKDIR.value), DATA_DIR.value), SPLIT.value)


if __name__ == "__main__":
  cli.run(main)
