"""Configuration files: `--config=beauty` means configs/beauty.py, in a clone and in a wheel."""

import inspect
import os
import pathlib
import re
import runpy
import traceback

from ml_collections import ConfigDict, FrozenConfigDict

from mmesid_jax.config.schema import flat_keys, flatten
from mmesid_jax.errors import UserError


def configs_dir() -> pathlib.Path:
  """The folder of the configurations that come with the package."""
  package = pathlib.Path(__file__).parents[1]
  installed = package / "configs"  # a wheel puts them there; a clone has them beside the package
  return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
  """The names of the configurations that come with the package."""
  return sorted(file.stem for file in configs_dir().glob("[!_]*.py"))


def config_file(config: str) -> str:
  """The file of a configuration given as NAME, NAME:PRESET, FILE or FILE:PRESET.

  Returns:
    FILE or FILE:PRESET, as ml_collections expects it. A name of letters, digits, - and _ is never a
    file: a data set in the folder that one stands in may hold one of that name, and it would run.

  Raises:
    UserError: No such file; no configuration has the name.
  """
  name, colon, preset = config.partition(":")
  name = os.path.expanduser(name)
  if not re.fullmatch(r"[\w-]+", name):
    if not os.path.isfile(name):
      raise UserError(f"--config={config}: no such file")
    return f"{name}{colon}{preset}"
  if name not in (known := config_names()):
    raise UserError(
      f"--config={config}: no configuration has this name; known: {', '.join(known)}; "
      "your own is given by its path, as ./FILE or FILE.py"
    )
  return f"{configs_dir() / name}.py{colon}{preset}"


# a key that only configurations of this kind have -> the command that takes them
KINDS = {"recommender": "train", "variants": "ablate", "events": "prepare"}


def check_keys(given: str, config: ConfigDict, template: ConfigDict) -> None:
  """Raises UserError for a configuration of another command, and for one that lacks a key.

  Args:
    given: The value of --config, for the message.
    config: What its file returned.
    template: Every section and key that the command reads. Those of `features` may be missing.
  """
  wanted, found = (next((KINDS[k] for k in KINDS if k in c), None) for c in (template, config))
  if found not in (None, wanted):
    raise UserError(
      f"--config={given}: is a configuration for the command {found}; expected one for {wanted}"
    )
  keys, leaves, template_leaves = set(flat_keys(config)), flatten(config), flatten(template)
  for key in flat_keys(template):
    if key not in keys and not re.match(r"(base\.)?features\.", key):
      raise UserError(f"--config={given}: the key {key} is missing; see the files in configs/")
    if key in leaves and key not in template_leaves:
      raise UserError(f"--config={given}: {key}={leaves[key]!r}: expected a section of keys")


def load_config(file: str) -> ConfigDict:
  """Calls get_config of FILE or FILE:PRESET. Raises UserError for a broken file."""
  path, *preset = file.split(":", 1)
  try:
    get_config = runpy.run_path(path).get("get_config")
    if get_config and preset and not inspect.signature(get_config).parameters:
      raise UserError(f"--config={file}: this configuration has no presets")
    config = get_config(*preset) if get_config else None
  except (UserError, KeyboardInterrupt):
    raise
  except SyntaxError as error:
    raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
  except BaseException as error:  # sys.exit, too, would end without a word
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raise UserError(
      f"--config={file}: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    ) from error
  if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
    raise UserError(f"--config={file}: expected a function get_config() that returns a ConfigDict")
  return config
