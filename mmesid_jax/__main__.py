"""Lists the commands, or runs one, as `mmesid train ...` or `python -m mmesid_jax train ...` do."""

import ast
import pathlib
import runpy
import sys

import mmesid_jax
from mmesid_jax.errors import UserError

COMMANDS = (  # in the order of use
  *("prepare", "encode", "fetch_images", "vectors", "convert_gguf", "train", "evaluate"),
  *(
    "recommend",
    "serve",
    "refresh",
    "semantic_ids",
    "export",
    "push",
    "pull",
    "plan",
    "cold_start",
  ),
  "ablate",
)


def main() -> None:
  """Runs the command that the first word names; the other words are its command line."""
  mmesid_jax.begin_command()  # the script that calls this may have any name
  from mmesid_jax.display import reporter  # imports other packages, so it waits for the line above

  words = sys.argv[1:]
  if words and words[0] in ("help", "-h", "-help", "--help"):
    words = [*words[1:2], "--help"] if words[1:] else []
  if not words:
    reporter.info(command_list())
  elif words[0] in ("-version", "--version"):
    reporter.info(f"mmesid_jax {mmesid_jax.__version__}")
  elif words[0] in COMMANDS:
    sys.argv[1:] = words[1:]
    runpy.run_module(f"mmesid_jax.{words[0]}", run_name="__main__", alter_sys=True)
  else:
    from mmesid_jax.config.command_line import nearest_name  # as above

    near = nearest_name(words[0], COMMANDS)
    print(f"error: {words[0]}: no such command; did you mean {near}?", file=sys.stderr)
    sys.exit(UserError.status)


def command_list() -> str:
  """The commands, a line each, with the first sentence of their docstrings; imports none."""
  lines = [f"mmesid_jax {mmesid_jax.__version__}. {mmesid_jax.__doc__.splitlines()[0]}", ""]
  for name in COMMANDS:
    source = pathlib.Path(__file__).with_name(f"{name}.py").read_text()
    summary = ast.get_docstring(ast.parse(source)).splitlines()[0]
    lines.append(f"  {name:14}{summary}")
  usage = (
    "`mmesid COMMAND --help` or `python -m mmesid_jax.COMMAND --help` shows a command's flags."
  )
  return "\n".join([*lines, "", usage])


if __name__ == "__main__":
  main()
