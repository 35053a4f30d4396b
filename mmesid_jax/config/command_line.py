"""How entry points start: flags parsed, mistakes of the user told in one line, status 2.

ml_collections answers a mistyped `--config.a.b` with a traceback, absl a mistyped flag with a hint
to --helpfull. Here both name what is wrong and the nearest thing that exists. Nothing here imports
jax, so a typo is refused before anything heavy starts.
"""

import difflib
import errno
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict

from mmesid_jax.errors import Interrupted, Stop, UserError

CONFIG = "config"  # the flag that names the config file, in every entry point that takes one


def run(main: Callable[[list[str]], object], *, subcommands: Sequence[str] = ()) -> None:
  """absl's app.run(main), where every `errors.Stop` ends as one line on stderr and its status.

  A command line that does not parse is a UserError: `error: ...`, status 2. `main` gets the
  arguments that are no flags: the program's name and, where it has subcommands, the one that came
  first; others are refused. A folder that cannot be written, or a full disk, is told in one line
  too.
  """
  # Orbax tells every file that it writes, and with its traceback every error that it also raises
  logging.set_verbosity(logging.FATAL)
  sys.unraisablehook = _unraisable
  try:
    app.run(main, flags_parser=lambda argv: _parse(argv, subcommands))
  except Stop as stop:
    label = "stopped" if isinstance(stop, Interrupted) else "error"
    print(f"{label}: {' '.join(str(stop).splitlines())}", file=sys.stderr)
    if not isinstance(stop, Interrupted):  # then all processes end here, each having saved
      _leave_others(stop.status)
    sys.exit(stop.status)
  except KeyboardInterrupt:
    _leave_others(128 + 2)
    raise
  except BrokenPipeError:  # whoever reads, as `head` does, has enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to be flushed
    _leave_others(1)
    sys.exit(1)
  except Exception as error:
    status = 1
    if isinstance(error, OSError) and error.errno in _PLACE and error.filename:
      print(f"error: {error.filename}: {error.strerror.lower()}", file=sys.stderr)
      status = UserError.status
    else:
      traceback.print_exc()
    _leave_others(status)
    sys.exit(status)


def define_process_flags() -> None:
  """--coordinator, --processes and --process, of entry points that several processes may run."""
  flags.DEFINE_string("coordinator", None, "host:port of process 0, where no launcher says so.")
  flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator.")
  flags.DEFINE_integer("process", None, "Which of them this is, from 0, with --coordinator.")


def process_environment() -> dict[str, str]:
  """The environment, in which these flags, where given, stand for what a launcher sets."""
  names = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
  }
  given = {name: flags.FLAGS[flag].value for flag, name in names.items()}
  return os.environ | {name: str(value) for name, value in given.items() if value is not None}


def _leave_others(status: int) -> None:
  """With several processes ends this one at once: a regular exit would wait for the others."""
  if processes := sys.modules.get("mmesid_jax.parallel.processes"):
    processes.leave(status)


def _unraisable(found) -> None:
  """Prints an error that nothing could catch, unless it only follows one that is told: at the first
  write that fails Orbax closes its event loop, and those beside it find it closed."""
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


def flat_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
  """The config's keys with dots between levels, sections and leaves."""
  for key, value in config.items(preserve_field_references=True):
    yield prefix + key
    if isinstance(value, ConfigDict):
      yield from flat_keys(value, f"{prefix}{key}.")


def nearest(name: str, names: Sequence[str]) -> str:
  """The most similar of the names. The last part counts most; `lr` is taken for `learning_rate`."""

  def similarity(candidate: str) -> float:
    part, other = name.rpartition(".")[2], candidate.rpartition(".")[2]
    initials = "".join(word[0] for word in re.findall("[a-z0-9]+", other))
    same = 1.0 if part == initials else difflib.SequenceMatcher(None, part, other).ratio()
    return 2 * same + difflib.SequenceMatcher(None, name, candidate).ratio()

  return max(names, key=similarity)


def _parse(argv: Sequence[str], subcommands: Sequence[str]) -> list[str]:
  # absl reads flags up to the first word that is none, so the subcommand is taken out before
  subcommand = [word for word in argv[1:2] if subcommands and not word.startswith("-")]
  if subcommand and subcommand[0] not in subcommands:
    raise UserError(f"{subcommand[0]}: no such subcommand; expected {' or '.join(subcommands)}")
  argv = [argv[0], *argv[1 + len(subcommand) :]]
  path = _config_path(argv) if CONFIG in flags.FLAGS else None
  if path is not None and not os.path.isfile(path.split(":", 1)[0]):
    raise UserError(f"--{CONFIG}={path}: no such file")
  try:
    rest = flags.FLAGS(list(argv))
  except UserError:
    raise  # by the config file itself
  except Exception as error:
    problem, config = error, _load_config(path) if path is not None else None
  else:
    problem, config = None, flags.FLAGS[CONFIG].value if path is not None else None
  if path is not None and not isinstance(config, ConfigDict):
    raise UserError(f"--{CONFIG}={path}: get_config() returned no ConfigDict")
  if problem is not None:
    # the libraries say what broke inside them; with the config at hand, better can be said
    raise UserError(_explain(problem, argv, config)) from problem
  _check_tuples(argv)
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
  if subcommands and not subcommand:  # after the flags: --help needs none
    raise UserError(f"the first word must be a subcommand: {' or '.join(subcommands)}")
  return [*rest, *subcommand]


def _config_path(argv: Sequence[str]) -> str | None:
  for argument, following in zip(argv[1:], [*argv[2:], None], strict=True):
    if argument == "--":
      break
    name, equals, value = argument.partition("=")
    if name in (f"--{CONFIG}", f"-{CONFIG}"):
      return value if equals else following
  return None


def _load_config(path: str) -> object:
  """The config as its file gives it, without overrides. Raises UserError for a broken file."""
  file, *argument = path.split(":", 1)
  try:
    return runpy.run_path(file)["get_config"](*argument)
  except UserError:
    raise
  except SyntaxError as error:
    raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
  except Exception as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raise UserError(
      f"--{CONFIG}={path}: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    ) from error


def _explain(error: Exception, argv: Sequence[str], config: ConfigDict | None) -> str:
  """One line that says what on the command line is wrong and what would be right."""
  overrides = _overrides(argv)
  if config is None and overrides:
    return f"--{CONFIG}.{overrides[0]}: needs --{CONFIG}=FILE"
  keys = list(flat_keys(config)) if config is not None else []
  for key in overrides:
    if re.sub(r"\[\d+\]", "", key) not in keys:
      return f"--{CONFIG}.{key}: no such key; did you mean {nearest(key, keys)}?"
    if "[" in key and isinstance(error, IndexError):
      return f"--{CONFIG}.{key}: no such place; set the whole of --{CONFIG}.{key.split('[')[0]}"
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    known = [*(n for n in flags.FLAGS if len(n) > 1), *(f"{CONFIG}.{key}" for key in keys)]
    return f"--{name}: no such flag; did you mean --{nearest(name, known)}?"
  message = str(error.args[0] if error.args else error)
  missing = re.fullmatch(r"flag --(\w+)=None: Flag .* must have a value other than None\.", message)
  if missing:
    return f"--{missing[1]} is missing; it must be given"
  value = re.match(r"flag --([^=]+)=(.*?): ", message, re.DOTALL)
  if value and value[1] in flags.FLAGS:
    parser = flags.FLAGS[value[1]].parser
    simple = {int: "an integer", float: "a number", bool: "true or false"}
    for kind, wanted in simple.items():
      if isinstance(parser, _PARSERS[kind]):
        return f"--{value[1]}={value[2]}: expected {wanted}"
  return message.removeprefix("flag ").strip() or type(error).__name__


def _check_tuples(argv: Sequence[str]) -> None:
  """Raises UserError for a tuple set to elements of another type, which ml_collections takes."""
  for key in _overrides(argv):
    flag = flags.FLAGS[f"{CONFIG}.{key}"]
    if isinstance(flag, flags.MultiFlag) and flag.default:  # how ml_collections parses tuples
      kind = type(flag.default[0])
      if not all(type(x) is kind or (kind is float and type(x) is int) for x in flag.value):
        like = ",".join(map(str, flag.default))
        raise UserError(f"--{CONFIG}.{key}: expected values of type {kind.__name__}, as in {like}")


def _overrides(argv: Sequence[str]) -> list[str]:
  """The keys that the command line sets, as in --config.key=value, in its order."""
  pattern = re.compile(rf"--?(?:no)?{CONFIG}\.([^=]+)")
  matches = (pattern.match(argument) for argument in argv[1:])
  return [match[1] for match in matches if match]


# What is wrong with a place that the user named, rather than with the program.
_PLACE = (
  *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
  *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)

_PARSERS = {int: flags.IntegerParser, float: flags.FloatParser, bool: flags.BooleanParser}
