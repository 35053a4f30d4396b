"""Ranks the held-out items again: python -m mmesid_jax.evaluate --workdir=DIR
[--split=valid|test]

--stage=semantic_ids says instead whether the semantic IDs are any good, and trains nothing: tables
of the codebooks' health and of the vectors' geometry, semantic_ids.json and semantic_ids.html.
"""

import pathlib

from absl import flags

from mmesid_jax import cli

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that mmesid_jax.train wrote.")
STAGE = flags.DEFINE_enum(
  "stage", "recommender", ["recommender", "semantic_ids"], "What is evaluated."
)
SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "Which held-out item is ranked.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data is now, if it has moved.")
flags.mark_flag_as_required("workdir")


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax import pipeline

  workdir = pipeline.reopen(pathlib.Path(WORKDIR.value), DATA_DIR.value)
  if STAGE.value == "semantic_ids":
    pipeline.examine(workdir)
  else:
    pipeline.evaluate(workdir, SPLIT.value)


if __name__ == "__main__":
  cli.run(main)
