"""The words of a command line before they are parsed: files of flags, and the flag --config."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from mmesid_jax.errors import UserError

CONFIG = "config"  # the flag that names the config file, in every command that takes one

flags.disclaim_key_flags()  # the flag belongs to the module that calls define_config_file


def define_config_file(
  default: str | None, help: str, template: Callable[[], ConfigDict]
) -> flags.FlagHolder:
  """Defines --config, whose file must have the keys of the template. Keys cannot be added."""
  given, sys.argv = sys.argv, sys.argv[:1]  # ml_collections would read --flagfile=FILE here already
  try:
    flag = config_flags.DEFINE_config_file(CONFIG, default, help, lock_config=True)
    flags.FLAGS[CONFIG].parser.template = template
    return flag
  finally:
    sys.argv = given


def with_flagfiles(argv: Sequence[str]) -> list[str]:
  """The command line with the flags of files in the place of --flagfile=FILE. Raises UserError."""
  warning = io.StringIO()  # about a circle of files, with which absl would go on
  try:
    with contextlib.redirect_stderr(warning):
      found = flags.FLAGS.read_flags_from_files([*argv])
  except (flags.Error, OSError, ValueError) as error:
    reason = str(error).removeprefix("ERROR:: Unable to open flagfile: ")
    raise UserError(f"--flagfile: cannot be read ({reason}); name another file") from None
  if warning.getvalue():
    file = warning.getvalue().splitlines()[0].partition("flagfile: ")[2]
    raise UserError(
      f"--flagfile={file}: is named in itself, or in a file that it names; remove that line"
    )
  return found


def config_given(argv: Sequence[str]) -> str | None:
  """The value of --config on the command line. Raises UserError where it is given twice."""
  found = [value for name, value in _flags_given(argv) if name == CONFIG]
  if len(found) > 1:
    raise UserError(f"--{CONFIG} is given twice, {found[0]} and {found[1]}; give one")
  return found[0] if found else None


def check_values_given(argv: Sequence[str]) -> None:
  """Raises UserError for a flag without its value, where absl would take the next flag as one."""
  for argument, following in itertools.pairwise(argv[1:]):
    name = argument.lstrip("-")
    if argument == "--":
      return
    if not argument.startswith("-") or name not in flags.FLAGS or flags.FLAGS[name].boolean:
      continue
    if re.match(r"-+[a-zA-Z?]|--$", following):  # negative numbers are values
      raise UserError(
        f"--{name} needs a value, but {following} follows; a value is written --{name}=VALUE"
      )


def check_given_once(argv: Sequence[str]) -> None:
  """Raises UserError for a flag with two values, of which absl would drop the first.

  Args:
    argv: The command line as it was typed: it may give other values than a --flagfile on it.
  """
  values = {}
  for name, value in _flags_given(argv):
    if name not in flags.FLAGS and name.startswith("no"):
      name, value = name.removeprefix("no"), "false"
    flag = flags.FLAGS[name] if name in flags.FLAGS else None
    if flag is None or name == "flagfile" or isinstance(flag, flags.MultiFlag):
      continue
    if flag.boolean:
      value = str(flag.parser.parse(value or "true")).lower()
    if values.setdefault(flag.name, value) != value:
      raise UserError(f"--{name} is given twice, {values[flag.name]} and {value}; give one")


def _flags_given(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Name and value of every flag. What follows --name is its value, if the flag takes one."""
  for argument, following in itertools.pairwise([*argv[1:], None]):
    if argument == "--":
      return
    if argument.startswith("-"):
      name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
      boolean = name in flags.FLAGS and flags.FLAGS[name].boolean
      yield name, value if equals else None if boolean else following


def with_config(argv: Sequence[str], file: str) -> list[str]:
  """The command line with `file` as the first value of --config."""
  for place, argument in enumerate(argv[1:], 1):
    name, equals, _ = argument.partition("=")
    if name in (f"--{CONFIG}", f"-{CONFIG}"):
      return [*argv[:place], f"{name}={file}", *argv[place + (1 if equals else 2) :]]
  return list(argv)
