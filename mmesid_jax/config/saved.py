"""The configuration that a workdir keeps, and which keys two runs of one workdir must share."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from mmesid_jax.config.schema import default_config, flatten
from mmesid_jax.errors import UserError

RUN_KEYS = ("run", "mesh", "profile", "stages")  # may differ between two runs of one workdir
# Places may differ too: their contents are compared by fingerprint.
LOCATIONS = ("data.dir", "recommender.backbone.checkpoint", "recommender.lora.start")

# Keys that were added later: a workdir without them was made with their defaults.
LATER_KEYS = {
  "data": ("split", "split_at"),
  "semantic_ids": ("bandwidths",),
  "recommender": ("as_new",),
}


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """The configuration in workdir/config.json.

  Raises UserError for a folder without one, or with that of another version.
  """
  file = workdir / "config.json"
  if not file.is_file():
    raise UserError(f"{file}: no such file; name a folder that mmesid_jax.train wrote")
  try:
    config = ConfigDict(json.loads(file.read_text()))
  except (ValueError, AttributeError) as error:
    raise UserError(
      f"{file}: not a JSON object ({error}); delete it and run mmesid_jax.train again"
    ) from error
  for section in ("run", "mesh", "profile"):  # keys that may differ may also be missing
    config[section] = {**default_config()[section].to_dict(), **config.get(section, {})}
  for section, names in LATER_KEYS.items():
    defaults = {name: default_config()[section][name] for name in names}
    config[section] = {**defaults, **config.get(section, {})}
  different = flatten(config).keys() ^ flatten(default_config()).keys()
  if different := sorted(k for k in different if not k.startswith("features.")):
    raise UserError(
      f"{file}: written by another version of mmesid_jax ({different[0]} is on one side only); "
      "train again in another --workdir"
    )
  return config


def identity(config: ConfigDict) -> dict[str, Any]:
  """The flat keys that two runs of one workdir must share."""
  flat = flatten(json.loads(config.to_json_best_effort()))
  return {
    key: value
    for key, value in flat.items()
    if key.split(".")[0] not in RUN_KEYS and key not in LOCATIONS
  }
