"""What the command `semantic_ids encode` does: codes of new items, in a file of their own."""

import pathlib
from collections.abc import Sequence

import numpy as np

from mmesid_jax.config.schema import read_config
from mmesid_jax.errors import UserError
from mmesid_jax.stages import new_item_codes


def run(workdir: pathlib.Path, features: Sequence[str], output: pathlib.Path) -> None:
  """features: MODALITY=FILE each. Raises UserError."""
  sources = {}
  for text in features:
    modality, equals, file = text.partition("=")
    if not (modality and equals and file):
      raise UserError(f"--features={text}: expected MODALITY=FILE")
    if modality in sources:
      raise UserError(f"--features={text}: {modality} is given twice")
    sources[modality] = file
  new = new_item_codes.encode(workdir, read_config(workdir), sources)
  new_item_codes.write(output, new)
  print(f"{output}: {len(new):,} new items")
  for m, code_NL in new.codes.items():
    source = "" if m in new.given else " (of the training items' mean vector: not given)"
    print(f"{m}: {len(np.unique(code_NL, axis=0)):,} different IDs{source}")
