"""Semantic IDs of items that training never saw: python -m mmesid_jax.semantic_ids encode
--workdir=DIR --features=text=NEW.npy --output=NEW.safetensors

A table of new items has one row each and no padding row. --features may be given once for every
modality; one that is not given (new items have no collaborative vectors) is read as the mean of the
training items' vectors. mmesid_jax.recommend --new_items=NEW.safetensors recommends the items.
"""

import pathlib

from absl import flags

from mmesid_jax import cli

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that mmesid_jax.train wrote.")
FEATURES = flags.DEFINE_multi_string(
  "features", None, "MODALITY=FILE: .npy or .safetensors, [new items, width], no padding row."
)
OUTPUT = flags.DEFINE_string("output", None, "The .safetensors file to be written.")
flags.mark_flags_as_required(["workdir", "features", "output"])


def main(argv: list[str]) -> None:
  del argv  # "encode" is the only subcommand
  from mmesid_jax import identifying

  identifying.run(pathlib.Path(WORKDIR.value), FEATURES.value, pathlib.Path(OUTPUT.value))


if __name__ == "__main__":
  cli.run(main, subcommands=("encode",))
