"""Names that a modality may have: of a table under config.features, in artifacts and in answers."""

import re

from ml_collections import ConfigDict

# Attributes of the modules of Flax that hold a part for each modality, the score's other part,
# and a value of recommender.generate.modality.
TAKEN = frozenset(
  "clear eval iter_children iter_modules perturb pop popitem set_attributes setdefault sow train "
  "identity all".split()
)
RULE = "a name of lower-case letters, digits and _, a letter first, and no word with a meaning here"


def is_modality_name(name: str) -> bool:
  """Returns whether a modality may have this name; RULE says which in words."""
  is_word = re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None
  return is_word and not hasattr(ConfigDict, name) and name not in TAKEN
