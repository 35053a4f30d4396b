"""The text of a command's --help: its docstring, then its own flags in groups."""

import re
import textwrap
from collections.abc import Iterable, Mapping

from absl import flags

from mmesid_jax.config.paths import PathParser

WIDTH = 100  # of the text
COLUMN = 30  # where the meaning of a flag begins

# Title of a group -> its flags, in order, with spaces between: `workdir=DIR top_k`. What follows
# the equals sign stands for the value in the help; without it the flag's type says it.
Groups = Mapping[str, str]


def help_page(doc: str | None, groups: Groups, own_flags: Iterable[str]) -> str:
  """The help of one command.

  Args:
    doc: The command's docstring: what it does, examples, details.
    groups: Its flags.
    own_flags: Names of flags that are shown under "Other" where no group has them.
  """
  sections = dict(groups)
  grouped = {entry.partition("=")[0] for entries in groups.values() for entry in entries.split()}
  if others := [name for name in own_flags if name not in grouped]:
    sections["Other" if groups else "Flags"] = " ".join(others)
  parts = [(doc or "").strip()]
  for title, entries in sections.items():
    lines = [line for entry in entries.split() for line in _flag_lines(*entry.partition("=")[::2])]
    parts.append("\n".join([f"{title}:", *lines]))
  parts.append(
    "-h or --help shows this page, --version the version, --helpfull all flags of all libraries."
  )
  return "\n\n".join(part for part in parts if part)


def _flag_lines(name: str, value: str) -> list[str]:
  flag = flags.FLAGS[name]
  if flag.boolean:
    head = f"--[no]{name}" if flag.default else f"--{name}" + (f"[={value}]" if value else "")
  else:
    head = f"--{name}={value or _placeholder(flag)}"
  # absl adds the values to the help of an enum, and a remark to that of a flag given many times
  meaning = re.sub(r"^<.*?>: |;\s+repeat this option.*", "", flag.help, flags=re.DOTALL)
  if isinstance(flag, flags.MultiFlag):
    meaning += " May be given several times."
  if flag.default is not False and flag.default not in (None, ""):
    meaning += f" (default: {_shown(flag.default)})"
  lines = _row(head, meaning)
  if name == "config":
    lines += _row("--config.KEY=VALUE", "Changes a key of the configuration; may be repeated.")
  return lines


def _row(head: str, meaning: str) -> list[str]:
  lines = textwrap.wrap(meaning, WIDTH - COLUMN)
  first = f"  {head}"
  if len(first) > COLUMN - 2:
    return [first, *(" " * COLUMN + line for line in lines)]
  return [f"{first:{COLUMN}}{lines[0]}", *(" " * COLUMN + line for line in lines[1:])]


def _placeholder(flag: flags.Flag) -> str:
  if isinstance(flag.parser, flags.EnumParser):
    return "|".join(flag.parser.enum_values)
  kinds = {flags.IntegerParser: "N", flags.FloatParser: "NUMBER", flags.ListParser: "A,B,..."}
  if isinstance(flag.parser, PathParser):
    return "PATH"
  found = [text for kind, text in kinds.items() if isinstance(flag.parser, kind)]
  return found[0] if found else "TEXT"


def _shown(default: object) -> str:
  if default is True:
    return "yes"
  if isinstance(default, float):
    return f"{default:g}"
  return ",".join(default) if isinstance(default, list) else str(default)
