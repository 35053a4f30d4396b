"""Flags and keys that hold paths: `~` becomes the home folder, addresses of stores are refused."""

import os
import re

from absl import flags
from ml_collections import ConfigDict

from mmesid_jax.config.schema import flatten
from mmesid_jax.errors import UserError

# Keys of places whose contents are compared by fingerprint; feature tables are under features.
LOCATIONS = ("data.dir", "recommender.backbone.checkpoint", "recommender.lora.start")
FILE_LISTS = ("events", "metadata")  # of `prepare`, separated by commas

flags.disclaim_key_flags()  # a flag belongs to the module that calls define_path


class PathParser(flags.ArgumentParser):
  """Parses a local path; the value stays text."""

  syntactic_help = "a path"

  def parse(self, argument: str) -> str:
    if not argument:
      raise ValueError("is empty; expected a path")
    return local_path(argument)


def define_path(name: str, default: str | None, help: str) -> flags.FlagHolder:
  """Defines a flag that holds a path."""
  return flags.DEFINE(PathParser(), name, default, help, serializer=flags.ArgumentSerializer())


def define_paths(name: str, default: str | None, help: str) -> flags.FlagHolder:
  """Defines a flag that holds a path each time that it is given."""
  return flags.DEFINE_multi(PathParser(), flags.ArgumentSerializer(), name, default, help)


def local_path(text: str) -> str:
  """The path with `~` replaced.

  Raises ValueError for gs://, s3:// and the like, and for bytes that are not UTF-8: neither JSON
  nor Parquet, nor a library that takes a path as text, can hold them.
  """
  if re.match(r"[A-Za-z][\w+.-]+:/", text):
    raise ValueError("only local paths are read and written; mount the bucket, or copy the files")
  expanded = os.path.expanduser(text)
  if expanded.startswith("~"):
    raise ValueError(f"no user {expanded.split('/')[0][1:]!r} has a home directory; write ./~...")
  if not expanded.isascii() and re.search("[\ud800-\udfff]", expanded):  # as Python holds them
    raise ValueError("the name is not UTF-8; rename the file or folder, or name a link to it")
  return expanded


def _local_paths(text: str) -> str:
  return ",".join(map(local_path, text.split(",")))


def expand_paths(config: ConfigDict) -> None:
  """Applies `local_path` to all keys that hold paths. Raises UserError, which names the key."""
  for key, value in flatten(config).items():
    name = re.sub(r"^(base|variants\.[^.]+)\.", "", key)  # of a configuration of ablations
    if key in FILE_LISTS:
      expand = _local_paths
    elif isinstance(value, str) and (name in LOCATIONS or name.startswith("features.")):
      expand = local_path
    else:
      continue
    try:
      paths = expand(value)
    except ValueError as error:
      raise UserError(f"--config.{key}={value}: {error}") from None
    if paths != value:
      config.update_from_flattened_dict({key: paths})
