"""The configuration that a workdir keeps, and which keys two runs of one workdir must share."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mmesid_jax.config.checks import check_values
from mmesid_jax.config.paths import LOCATIONS
from mmesid_jax.config.schema import (
  BASELINES,
  KEYS,
  default_config,
  flat_keys,
  flatten,
  key_row,
)
from mmesid_jax.errors import UserError

RUN_KEYS = ("run", "mesh", "profile", "stages")  # may differ between two runs of one workdir


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """The configuration in workdir/config.json.

  Raises UserError for a folder without one, for that of another version, and for values that the
  command line would refuse.
  """
  file = workdir / "config.json"
  if not file.is_file():
    raise UserError(f"{file}: no such file; name a folder that mmesid_jax.train wrote")
  try:
    config = ConfigDict(json.loads(file.read_bytes()))
    saved, defaults = flatten(config), flatten(default_config())
  except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
    raise UserError(
      f"{file}: not a JSON object ({error}); delete it and run mmesid_jax.train again"
    ) from error
  _check_sections(file, config, saved)
  unknown = [key for key in saved if key_row(key) is None]
  missing = [key for key in KEYS if key not in saved and not key.startswith("features.")]
  lost = [key for key in missing if not _may_be_missing(key)]
  if different := sorted([*unknown, *lost]):
    raise UserError(
      f"{file}: written by another version of mmesid_jax ({different[0]} is on one side only); "
      "train again in another --workdir"
    )
  for key in missing:
    _set(config, key, defaults[key])
  if "features" not in config:
    config.features = ConfigDict()
  try:
    check_values(config)
  except UserError as error:
    raise UserError(f"{file}: {str(error).replace('--config.', '')}") from error
  _make_floats(config)
  return config


def _make_floats(config: ConfigDict) -> None:
  """Turns whole numbers in the place of floats into floats: int32 does not hold 10**10."""
  with config.ignore_type():  # it goes through all sections, so not once a key
    for key, value in flatten(config).items():
      default = key_row(key).default
      if isinstance(default, float):
        _set(config, key, float(value))
      elif isinstance(default, tuple) and isinstance(default[0], float):
        _set(config, key, [*map(float, value)])


def _check_sections(file: pathlib.Path, config: ConfigDict, saved: Mapping[str, Any]) -> None:
  """Raises UserError for a section in the place of a value, and a value in that of a section."""
  for key in flat_keys(config):
    if key not in saved and (row := key_row(key)):
      raise UserError(f"{file}: {key}: is a section; expected {row.rule.text}")
    if key in saved and any(other.startswith(f"{key}.") for other in KEYS):
      raise UserError(f"{file}: {key}={saved[key]!r}: expected a section of keys")


def _may_be_missing(key: str) -> bool:
  """Whether a workdir without the key was made with its default, or without regard to it."""
  return KEYS[key].added or key.split(".")[0] in (*RUN_KEYS, *BASELINES)


def _set(config: ConfigDict, key: str, value: Any) -> None:
  *sections, name = key.split(".")
  for section in sections:
    if section not in config:
      config[section] = ConfigDict()
    config = config[section]
  config[name] = value


def identity(config: ConfigDict) -> dict[str, Any]:
  """The flat keys that two runs of one workdir must share."""
  flat = flatten(json.loads(config.to_json_best_effort()))
  return {
    key: value
    for key, value in flat.items()
    if key.split(".")[0] not in RUN_KEYS and key not in LOCATIONS
  }


def artifact_keys(config: ConfigDict, prefixes: tuple[str, ...]) -> dict[str, Any]:
  """The flat keys under the prefixes that an artifact depends on.

  A key that was added later counts only where it is not at its default, so a new key makes no
  artifact stale.
  """
  defaults = flatten(default_config())

  def counts(key: str, value: Any) -> bool:
    row = KEYS.get(key)
    return key.startswith(prefixes) and not (row and row.added and value == defaults[key])

  return {key: value for key, value in identity(config).items() if counts(key, value)}
