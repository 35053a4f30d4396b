"""Starts a command: parses its flags, and ends a user's mistake with one line and status 2.

ml_collections answers a mistyped `--config.a.b` with a traceback, absl a mistyped flag with a hint
to --helpfull. Here both name what is wrong and the nearest thing that exists. Nothing here imports
jax, so a typo is refused before anything heavy starts.
"""

import difflib
import itertools
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict

import mmesid_jax
from mmesid_jax.config import process_end
from mmesid_jax.config.arguments import (
  CONFIG,
  check_given_once,
  check_values_given,
  config_given,
  with_config,
  with_flagfiles,
)
from mmesid_jax.config.help_page import Groups, help_page
from mmesid_jax.config.modality_names import RULE, is_modality_name
from mmesid_jax.config.named_configs import check_keys, config_file, load_config
from mmesid_jax.config.paths import expand_paths
from mmesid_jax.config.schema import add_modalities, flat_keys, flatten
from mmesid_jax.display import reporter
from mmesid_jax.display.escape import escape_text
from mmesid_jax.errors import Interrupted, Stop, UserError, disk_fault, place_fault
from mmesid_jax.parallel.jax_variables import check_precision, variable_fault

MAX_PROCESSES = 1_000_000


def run_command(
  main: Callable[[list[str]], object],
  *,
  groups: Groups | None = None,
  subcommands: Sequence[str] = (),
) -> None:
  """Runs `main` as absl's app.run does; every `errors.Stop` ends as one line on stderr.

  A folder that cannot be written, a full disk, and Ctrl-C or SIGTERM end in one line too.

  Args:
    main: Gets the arguments that are not flags: the program's name and the subcommand, if any.
    groups: The command's flags as --help shows them, under the docstring of main's module.
    subcommands: One of them must be the first word.

  Raises:
    SystemExit: With the status of the Stop: 2 for a command line that does not parse.
  """
  # Orbax logs every file that it writes, and every error that it also raises with its traceback
  logging.set_verbosity(logging.FATAL)
  process_end.open_closed_streams()
  sys.unraisablehook = _unraisable
  end = sys.exit
  if main.__module__ == "__main__":  # else the process is not the command's alone
    end = process_end.end_process
    process_end.raise_signals()

  def parse(argv: Sequence[str]) -> list[str]:
    if not _answer(argv, main.__globals__.get("__doc__"), groups or {}):
      words = _parse(argv, subcommands)
      check_precision()
      return words
    sys.exit(0)

  try:
    app.run(main, flags_parser=parse)
  except SystemExit as done:
    end(done.code or 0)
  except Stop as stop:
    label = "stopped" if isinstance(stop, Interrupted) else "error"
    print(f"{label}: {escape_text(' '.join(str(stop).splitlines()))}", file=sys.stderr)
    if not isinstance(stop, Interrupted):  # then all processes end here, each having saved
      _leave_others(stop.status)
    end(stop.status)
  except BrokenPipeError:  # the reader, `head` for example, has closed its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush
    _leave_others(1)
    end(1)
  except BaseException as error:
    status = 1
    if name := process_end.signal_in(error):
      print(f"stopped: {name}; {process_end.AGAIN}", file=sys.stderr)
      _leave_others(128 + 2)  # they do not know of it
      status = Interrupted.status
    elif reason := place_fault(error) or disk_fault(error):
      place = getattr(error, "filename", None) or "a file could not be written"
      print(f"error: {escape_text(str(place))}: {reason}", file=sys.stderr)
      status = UserError.status
    elif reason := variable_fault(error):
      print(f"error: {escape_text(' '.join(reason.split()))}", file=sys.stderr)
      status = UserError.status
    else:
      traceback.print_exc()
    _leave_others(status)
    end(status)


def define_process_flags() -> None:
  """Defines --coordinator, --processes and --process, for commands that several processes run."""
  flags.DEFINE_string("coordinator", None, "Address of process 0, where no launcher sets it.")
  flags.DEFINE_integer(
    "processes", None, "Number of processes, with --coordinator.", 1, MAX_PROCESSES
  )
  flags.DEFINE_integer(
    "process", None, "Number of this process, from 0, with --coordinator.", 0, MAX_PROCESSES
  )


PROCESS_GROUP = {"Several processes": "coordinator=HOST:PORT processes process"}  # for --help


def require_flags(*names: str | Sequence[str]) -> None:
  """Raises UserError that names all flags which are missing; a tuple means exactly one of them."""
  missing = []
  for name in names:
    if isinstance(name, str):
      if flags.FLAGS[name].value in (None, "", []):
        missing.append(f"--{name}")
      continue
    listed = ", ".join(f"--{other}" for other in name)
    given = [f"--{other}" for other in name if flags.FLAGS[other].value not in (None, False)]
    if len(given) > 1:
      raise UserError(f"expected one of {listed}; found {' and '.join(given)}")
    if not given:
      missing.append(f"one of {listed}")
  if missing:
    raise UserError(_missing(missing))


def process_environment() -> dict[str, str]:
  """The environment, with the values of these flags in place of what a launcher sets."""
  names = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
  }
  given = {name: flags.FLAGS[flag].value for flag, name in names.items()}
  return os.environ | {name: str(value) for name, value in given.items() if value is not None}


def _leave_others(status: int) -> None:
  """Ends this process at once if it is one of several: a regular exit would wait for the others."""
  if processes := sys.modules.get("mmesid_jax.parallel.processes"):
    processes.exit_at_once(status)


def _unraisable(found) -> None:
  """Prints an error that nothing could catch, unless it only follows one that is reported.

  At the first write that fails Orbax closes its event loop, and its other writes find it closed.
  A signal that comes while an object is deleted is sent again.
  """
  if isinstance(found.exc_value, KeyboardInterrupt):
    process_end.send_again(found.exc_value)
  elif str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


def nearest_name(name: str, names: Sequence[str]) -> str:
  """The most similar of the names. The last part counts most; `lr` is taken for `learning_rate`."""

  def similarity(candidate: str) -> float:
    part, other = name.rpartition(".")[2], candidate.rpartition(".")[2]
    initials = "".join(word[0] for word in re.findall("[a-z0-9]+", other))
    same = 1.0 if part == initials else difflib.SequenceMatcher(None, part, other).ratio()
    return 2 * same + difflib.SequenceMatcher(None, name, candidate).ratio()

  return max(names, key=similarity)


def _answer(argv: Sequence[str], doc: str | None, groups: Groups) -> bool:
  """Prints the help page or the version if the command line asks for it, and says whether."""
  options = set(itertools.takewhile(lambda word: word != "--", argv[1:]))
  if options & {"-h", "-help", "--help", "-?"}:
    reporter.info(help_page(doc, groups, _own_flags(argv[0])))
    return True
  if options & {"-version", "--version"}:
    reporter.info(f"mmesid_jax {mmesid_jax.__version__}")
    return True
  return False


def _own_flags(program: str) -> list[str]:
  """The flags that the program itself defines, without old names of others."""
  own = flags.FLAGS.get_flags_for_module(program)
  return [flag.name for flag in own if not flag.help.startswith("Alias for ")]


def _parse(argv: Sequence[str], subcommands: Sequence[str]) -> list[str]:
  # absl reads flags up to the first word that is none, so the subcommand is taken out before
  subcommand = [word for word in argv[1:2] if subcommands and not word.startswith("-")]
  if subcommand and subcommand[0] not in subcommands:
    raise UserError(f"{subcommand[0]}: no such subcommand; expected {' or '.join(subcommands)}")
  typed = [argv[0], *argv[1 + len(subcommand) :]]
  argv = with_flagfiles(typed)
  check_values_given(argv)
  given = config_given(argv) if CONFIG in flags.FLAGS else None
  file = None if given is None else config_file(given)
  if file is not None:
    argv = with_config(argv, file)
    _check_and_extend(argv, given)
    argv = _with_tuples_of_words(argv, file)
  try:
    rest = flags.FLAGS(list(argv))
  except UserError:
    raise  # by the config file itself
  except Exception as error:
    problem, config = error, load_config(file) if file is not None else None
    add_modalities(config, _overrides(argv))
  else:
    problem, config = None, flags.FLAGS[CONFIG].value if file is not None else None
  check_values_given(argv)  # again: now the keys of the config are flags too
  if problem is not None:
    # the libraries say what broke inside them; with the config at hand, better can be said
    raise UserError(_explain(problem, argv, config)) from problem
  check_given_once(typed)
  _check_not_empty()
  _check_finite()
  _check_tuples(argv)
  _check_preset(argv)
  if config is not None:
    expand_paths(config)
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
  if subcommands and not subcommand:  # after the flags: a mistyped one is named first
    raise UserError(f"the first word must be a subcommand: {' or '.join(subcommands)}")
  return [*rest, *subcommand]


def _check_and_extend(argv: Sequence[str], given: str) -> None:
  """Makes the config file's parser check the keys and add the modalities that the command line
  names."""
  parser = flags.FLAGS[CONFIG].parser

  def parse(file: str) -> ConfigDict:
    config = load_config(file).lock()
    check_keys(given, config, parser.template())
    add_modalities(config, _overrides(argv))
    return config

  parser.parse = parse


def _explain(error: Exception, argv: Sequence[str], config: ConfigDict | None) -> str:
  """One line that says what on the command line is wrong and what would be right."""
  overrides = _overrides(argv)
  if config is None and overrides:
    return f"--{CONFIG}.{overrides[0]}: needs --{CONFIG}=FILE"
  keys = list(flat_keys(config)) if config is not None else []
  for key in overrides:
    if not key:
      return f"--{CONFIG}.: names no key; expected --{CONFIG}.KEY=VALUE"
    if _is_section(config, key):
      inner = next((k for k in keys if k.startswith(f"{key}.")), f"{key}.NAME")
      return f"--{CONFIG}.{key}: is a section; set one of its keys, as --{CONFIG}.{inner}=VALUE"
    section, _, name = key.rpartition(".")
    if section in ("features", "base.features") and not is_modality_name(name):
      return f"--{CONFIG}.{key}: expected {RULE}"
    if re.sub(r"\[\d+\]", "", key) not in keys:
      return f"--{CONFIG}.{key}: no such key; did you mean {nearest_name(key, keys)}?"
    if "[" in key and isinstance(error, IndexError):
      return f"--{CONFIG}.{key}: no such place; set the whole of --{CONFIG}.{key.split('[')[0]}"
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    known = [*(n for n in flags.FLAGS if len(n) > 1), *(f"{CONFIG}.{key}" for key in keys)]
    return f"--{name}: no such flag; did you mean --{nearest_name(name, known)}?"
  message = str(error.args[0] if error.args else error)
  if message.endswith(_REQUIRED):
    return _missing([f"--{name}" for name in _required() if flags.FLAGS[name].value is None])
  value = re.match(r"flag --([^=]+)=(.*?): ", message, re.DOTALL)
  if value and value[1] in flags.FLAGS:
    parser = flags.FLAGS[value[1]].parser
    if isinstance(parser, flags.BooleanParser):
      return f"--{value[1]}={value[2]}: expected true or false"
    if isinstance(parser, _NUMBERS):
      return f"--{value[1]}={value[2]}: expected {parser.syntactic_help}"  # with its range
  return message.removeprefix("flag ").strip() or type(error).__name__


def _is_section(config: ConfigDict | None, key: str) -> bool:
  value: object = config
  for name in key.split("."):
    value = value.get(name) if isinstance(value, ConfigDict) else None
  return isinstance(value, ConfigDict)


def _required() -> list[str]:
  """The flags that absl itself requires."""
  return [
    name
    for name in flags.FLAGS
    if any(validator.message.endswith(_REQUIRED) for validator in flags.FLAGS[name].validators)
  ]


def _missing(names: Sequence[str]) -> str:
  listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
  return f"{listed} {'is missing; it' if len(names) == 1 else 'are missing; they'} must be given"


_WORDS_WITH_COMMAS = re.compile(rf"--?{CONFIG}\.(?P<key>[^=]+)=(?P<words>[\w.-]+(,[\w.-]+)+)")


def _with_tuples_of_words(argv: Sequence[str], file: str) -> list[str]:
  """The command line with --config.key=a,b written once for a and once for b, where the key holds
  a tuple of words: ml_collections splits only numbers at commas."""
  if not any(_WORDS_WITH_COMMAS.fullmatch(word) for word in argv):
    return [*argv]  # the config file need not be run once more
  tuples = {
    key
    for key, value in flatten(load_config(file)).items()
    if isinstance(value, list) and value and all(isinstance(x, str) for x in value)
  }
  expanded = []
  for word in argv:
    match = _WORDS_WITH_COMMAS.fullmatch(word)
    if match and match["key"] in tuples:
      expanded += [f"--{CONFIG}.{match['key']}={part}" for part in match["words"].split(",")]
    else:
      expanded.append(word)
  return expanded


def _check_not_empty() -> None:
  """Raises UserError for a list that is given without an entry."""
  for name in flags.FLAGS:
    if flags.FLAGS[name].present and flags.FLAGS[name].value == []:
      raise UserError(f"--{name}: is empty; expected entries, separated by commas")


def _check_finite() -> None:
  """Raises UserError for a number flag or key that is nan or infinite: absl lets nan pass."""
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    if isinstance(flag.value, float) and not math.isfinite(flag.value):
      wanted = flag.parser.syntactic_help.replace("number", "finite number", 1)
      raise UserError(f"--{name}={flag.value}: expected {wanted}")


def _check_tuples(argv: Sequence[str]) -> None:
  """Raises UserError for a tuple set to elements of another type, which ml_collections takes."""
  for key in _overrides(argv):
    flag = flags.FLAGS[f"{CONFIG}.{key}"]
    if isinstance(flag, flags.MultiFlag) and flag.default:  # how ml_collections parses tuples
      kind = type(flag.default[0])
      if not all(type(x) is kind or (kind is float and type(x) is int) for x in flag.value):
        like = ",".join(map(str, flag.default))
        raise UserError(f"--{CONFIG}.{key}: expected values of type {kind.__name__}, as in {like}")


def _check_preset(argv: Sequence[str]) -> None:
  """Raises UserError where the command line sets the name of the preset, which changes no key."""
  for key in _overrides(argv):
    if key in ("preset", "base.preset"):
      raise UserError(
        f"--{CONFIG}.{key} cannot be set; choose the preset with the file, as in "
        f"--{CONFIG}=configs/beauty.py:paper"
      )


def _overrides(argv: Sequence[str]) -> list[str]:
  """The keys that the command line sets, as in --config.key=value, in its order."""
  pattern = re.compile(rf"--?(?:no)?{CONFIG}\.([^=]*)")
  matches = (pattern.match(argument) for argument in argv[1:])
  return [match[1] for match in matches if match]


_REQUIRED = "must have a value other than None."  # how absl's message for a missing flag ends

_NUMBERS = (flags.IntegerParser, flags.FloatParser)
