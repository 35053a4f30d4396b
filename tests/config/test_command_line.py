import errno
import os
import pathlib
import runpy
import subprocess
import sys
import types

import pytest

import mmesid_jax
from mmesid_jax.config import command_line, named_configs
from mmesid_jax.config.command_line import nearest_name
from mmesid_jax.errors import UserError
from mmesid_jax.parallel import processes

CONFIG = """
import ml_collections
from mmesid_jax.errors import UserError

def get_config(preset="best"):
  if preset == "worst":
    raise UserError("preset 'worst': expected best")
  if preset == "broken":
    raise ValueError("two\\nlines")
  recommender = dict(learning_rate=1e-3, steps=10, masked=True, stages=("a", "b"), sizes=(3, 4))
  return ml_collections.ConfigDict(dict(seed=0, recommender=recommender))
"""

PROGRAM = """
import errno
import os
import sys
from absl import flags
from ml_collections import ConfigDict
from mmesid_jax import errors
from mmesid_jax.config import arguments, command_line

CONFIG = arguments.define_config_file(None, "Config.", lambda: ConfigDict({"recommender": {}}))
WORKDIR = flags.DEFINE_string("workdir", None, "Where to.", required=True)
SHARE = flags.DEFINE_float("share", 1, "A number.", 0, 1)
LIST = flags.DEFINE_list("list", ["a"], "Some.")
STOP = flags.DEFINE_string("stop", None, "What main raises.")
LOST = flags.DEFINE_string("lost", None, "What is raised where nobody catches it.")

class Lost:
  def __del__(self):
    raise RuntimeError(LOST.value)

def main(argv):
  if LOST.value:
    Lost()
  if STOP.value:
    if STOP.value in dir(errno):
      number = getattr(errno, STOP.value)
      raise OSError(number, os.strerror(number), "a\\x1bplace")
    if STOP.value == "disk":
      raise RuntimeError("a library's") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise getattr(errors, STOP.value)("one\\ntwo\\x1b[2J")
  assert "jax" not in sys.modules
  print(len(argv), WORKDIR.value, CONFIG.value and CONFIG.value.recommender.steps)

assert "jax" not in sys.modules
command_line.run_command(main)
"""


@pytest.fixture
def program(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  (tmp_path / "syntax.py").write_text("x = 1\nx = = 2\n")
  (tmp_path / "empty.py").write_text("")
  for name, keys in {"lost": "seed=0", "leaf": "recommender=3"}.items():
    text = (
      f"import ml_collections\ndef get_config(): return ml_collections.ConfigDict(dict({keys}))\n"
    )
    (tmp_path / f"{name}.py").write_text(text)
  for name, names in {"itself": "itself", "first": "second", "second": "first"}.items():
    (tmp_path / name).write_text(f"--flagfile={names}\n--share=1\n")
  frozen = "import ml_collections\ndef get_config(): return ml_collections.FrozenConfigDict()\n"
  (tmp_path / "frozen.py").write_text(frozen)
  (tmp_path / "ends.py").write_text("import sys\ndef get_config(): sys.exit(0)\n")
  (tmp_path / "base.py").write_text("raise BaseException('what')\n")
  (tmp_path / "flags").write_text("--workdir=b\n")
  (tmp_path / "list.py").write_text("def get_config(): return [1]\n")

  def run(*arguments):
    return subprocess.run(
      [sys.executable, "-c", PROGRAM, *arguments],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      env={"PYTHONPATH": ":".join(sys.path)},
    )

  return run


def test_a_good_command_line_reaches_main(program):
  result = program("--workdir=a", "--config=config.py", "--config.recommender.steps=3")
  assert (result.returncode, result.stdout) == (0, "1 a 3\n"), result.stderr
  result = program("--workdir", "a", "--config", "config.py:best", "--config.seed", "4")
  assert (result.returncode, result.stdout) == (0, "1 a 10\n"), result.stderr
  for sizes in (
    "--config.recommender.sizes=5,6",
    "--config.recommender.sizes=(5,)",
    "--config.recommender.stages=c,b",
  ):
    assert program("--workdir=a", "--config=config.py", sizes).returncode == 0
  result = program("--workdir=a")
  assert (result.returncode, result.stdout) == (0, "1 a None\n"), result.stderr
  result = program("--config=config.py", "--config.recommender.steps", "-3", "--workdir", "-1")
  assert (result.returncode, result.stdout) == (0, "1 -1 -3\n"), result.stderr
  result = program("--config=config.py", "--config.recommender.masked", "--workdir=a")
  assert (result.returncode, result.stdout) == (0, "1 a 10\n"), result.stderr


def test_a_value_may_be_repeated_and_that_of_a_file_changed(program):
  lists = ("--config.recommender.sizes=5", "--config.recommender.sizes=6")
  for twice in (("--workdir=a", "--workdir", "a"), ("--flagfile=flags", "--workdir=a"), lists):
    result = program("--workdir=a", "--config=config.py", *twice)
    assert (result.returncode, result.stdout) == (0, "1 a 10\n"), result.stderr


def test_a_tuple_of_words_is_split_at_commas(tmp_path):
  """As numbers are; ml_collections takes "c,b" for one word."""
  (tmp_path / "config.py").write_text(CONFIG)
  words = ["x", "--config.recommender.stages=c,b", "--config.recommender.steps=3", "--a=b,c"]
  assert command_line._with_tuples_of_words(words, str(tmp_path / "config.py")) == [
    *("x", "--config.recommender.stages=c", "--config.recommender.stages=b"),
    *("--config.recommender.steps=3", "--a=b,c"),
  ]


W, C, R = "--workdir=a", "--config=config.py", "--config.recommender"
EXPECTED = "expected a function get_config() that returns a ConfigDict"
BAD = [
  ([W, C, f"{R}.lr=1"], f"{R}.lr: no such key; did you mean recommender.learning_rate?"),
  ([W, C, f"{R}.maskd"], f"{R}.maskd: no such key; did you mean recommender.masked?"),
  ([W, C, f"--noconfig{R[8:]}.maskd"], f"{R}.maskd: no such key; did you mean recommender.masked?"),
  (
    [W, C, "--config.recomender.steps=1"],
    "recomender.steps: no such key; did you mean recommender.s",
  ),
  ([W, C, "--config.steps", "1"], "--config.steps: no such key; did you mean recommender.steps?"),
  ([W, C, "--config.sead=1"], "--config.sead: no such key; did you mean seed?"),
  ([W, C, f"{R}.steps.x=1"], f"{R}.steps.x: no such key; did you mean recommender.steps?"),
  ([W, C, f"{R}.steps=abc"], f"{R}.steps=abc: expected an integer"),
  ([W, C, f"{R}.steps=1.5"], f"{R}.steps=1.5: expected an integer"),
  ([W, C, f"{R}.learning_rate=fast"], f"{R}.learning_rate=fast: expected a number"),
  ([W, C, f"{R}.learning_rate=inf"], f"{R}.learning_rate=inf: expected a finite number"),
  ([W, "--share=nan"], "--share=nan: expected a finite number in the range [0, 1]"),
  ([W, "--share=2"], "--share=2: expected a number in the range [0, 1]"),
  ([W, "--share=-inf"], "--share=-inf: expected a number in the range [0, 1]"),
  ([W, C, f"{R}.masked=maybe"], f"{R}.masked=maybe: expected true or false"),
  ([W, C, f"{R}=3"], f"{R}: is a section; set one of its keys, as {R}.learning_rate="),
  ([W, C, f"{R}.stages[0]=c"], f"{R}.stages[0]: no such place; set the whole of {R}.stages"),
  ([W, C, f"{R}.steps"], f"Missing value for flag {R}.steps"),
  ([W, C, f"{R}.sizes=5,x"], f"{R}.sizes: expected values of type int, as in 3,4"),
  ([W, C, f"{R}.sizes=1.5,2"], f"{R}.sizes: expected values of type int, as in 3,4"),
  ([W, C, f"{R}.sizes=5", f"{R}.sizes=x"], f"{R}.sizes: expected values of type int, as in 3,4"),
  ([W, "--config.seed=1", C], "Found --config.seed=1 in argv before a value for --config"),
  ([W, "--config.seed=1"], "--config.seed: needs --config=FILE"),
  ([W, "--config=nowhere.py"], "--config=nowhere.py: no such file"),
  ([W, "--config", "nowhere.py"], "--config=nowhere.py: no such file"),
  ([W, "--config=/"], "--config=/: no such file"),
  ([W, "--config=config.py:worst"], "preset 'worst': expected best"),
  (
    [W, "--config=config.py:broken"],
    "--config=config.py:broken: ValueError: two lines (config.py:9)",
  ),
  ([W, "--config=syntax.py"], "syntax.py:2: invalid syntax"),
  ([W, "--config=empty.py"], f"--config=empty.py: {EXPECTED}"),
  ([W, "--config=list.py"], f"--config=list.py: {EXPECTED}"),
  ([W, "--config=list.py", "--config.a=1"], f"--config=list.py: {EXPECTED}"),
  ([W, "--config=frozen.py"], f"--config=frozen.py: {EXPECTED}"),
  ([W, "--config=ends.py"], "--config=ends.py: SystemExit: 0 (ends.py:2)"),
  ([W, "--config=base.py"], "--config=base.py: BaseException: what (base.py:1)"),
  ([W, "--config"], "Missing value for flag --config"),
  ([W, C, "--config=quickstart"], "--config is given twice, config.py and quickstart; give one"),
  ([W, C, "--workdir", "b"], "--workdir is given twice, a and b; give one"),
  ([W, "-share=1", "--share=0.5"], "--share is given twice, 1 and 0.5; give one"),
  ([W, "--list=a", "--list=b"], "--list is given twice, a and b; give one"),
  ([W, C, f"{R}.steps=3", f"{R}.steps", "4"], f"{R}.steps is given twice, 3 and 4; give one"),
  ([W, C, f"{R}.masked", f"--no{R[2:]}.masked"], f"{R}.masked is given twice, true and false;"),
  ([W, C, "--config.=1"], "--config.: names no key; expected --config.KEY=VALUE"),
  ([W, C, f"{R}=1"], f"{R}: is a section; set one of its keys, as --config.recommender.learning_"),
  ([W, "--config=quickstart", "--config.features=1"], "--config.features: is a section; set one"),
  ([W, "--flagfile=/nope"], "--flagfile: cannot be read ([Errno 2]"),
  ([W, "--flagfile=itself"], "--flagfile=itself: is named in itself, or in a file that it names"),
  ([W, "--flagfile=first"], "--flagfile=first: is named in itself, or in a file that it names; re"),
  (["--wrkdir=a", C], "--wrkdir: no such flag; did you mean --workdir?"),
  ([W, C, "--conifg.seed=3"], "--conifg.seed: no such flag; did you mean --config.seed?"),
  (
    [W, "--config=nowhere"],
    "--config=nowhere: no configuration has this name; known: ablations, be",
  ),
  ([W, "--config=quickstart", "--config.sead=1"], "--config.sead: no such key; did you mean seed?"),
  (
    [W, "--config=prepare"],
    "=prepare: is a configuration for the command prepare; expected one fo",
  ),
  ([W, "--config=lost.py", "--config.seed=1"], "--config=lost.py: the key recommender is missing"),
  ([W, "--config=leaf.py"], "--config=leaf.py: recommender=3: expected a section of keys"),
  ([W, "--list="], "--list: is empty; expected entries, separated by commas"),
  ([W, "--config=ablations:best"], "ablations.py:best: this configuration has no presets"),
  ([W, "--config", "quickstart:bst"], "preset 'bst': expected one of best, "),
  ([C], "--workdir is missing; it must be given"),
  ([], "--workdir is missing; it must be given"),
  (["--workdir", C], "--workdir needs a value, but --config=config.py follows"),
  (["--config", W], "--config needs a value, but --workdir=a follows"),
  (["--workdir", "--config", "config.py"], "--workdir needs a value, but --config follows"),
  ([C, f"{R}.steps", W], f"{R}.steps needs a value, but --workdir=a follows"),
  (["--workdir"], "Missing value for flag --workdir"),
  ([W, C, "stray"], "unexpected argument 'stray'; flags are written --name=value"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_a_bad_command_line_is_one_line_and_status_2(program, arguments, message):
  result = program(*arguments)
  assert result.returncode == 2, result
  assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
  assert message in result.stderr
  assert result.stdout == ""


@pytest.mark.parametrize(
  ("stop", "status", "label"),
  [("UserError", 2, "error"), ("Diverged", 3, "error"), ("Interrupted", 75, "stopped")],
)
def test_a_stop_in_main_is_one_line_and_its_status(program, stop, status, label):
  result = program("--workdir=a", f"--stop={stop}")
  assert (result.returncode, result.stderr) == (status, f"{label}: one two\\x1b[2J\n")


def test_a_full_disk_that_a_library_reports_is_one_line(program):
  result = program("--workdir=a", "--stop=disk")
  line = "error: a file could not be written: no space left on device\n"
  assert (result.returncode, result.stderr) == (2, line)


@pytest.mark.parametrize(
  "name", ["ENOENT", "ELOOP", "EBUSY", "ETXTBSY", "ENAMETOOLONG", "EINVAL", "ENXIO", "ENOTEMPTY"]
)
def test_a_place_that_cannot_be_written_is_one_line(program, name):
  result = program("--workdir=a", f"--stop={name}")
  reason = os.strerror(getattr(errno, name)).lower()
  assert (result.returncode, result.stderr) == (2, f"error: a\\x1bplace: {reason}\n")


def test_a_reader_that_has_enough_ends_it_without_a_word(tmp_path):
  """As `| head -1` does; more is printed than a pipe holds."""
  code = (
    "from mmesid_jax.config.command_line import run_command\n"
    "run_command(lambda argv: [print('x' * 99) for _ in range(99_999)])"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={"PYTHONPATH": ":".join(sys.path)},
  ) as process:
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 1)


JAX_PROGRAM = """
from mmesid_jax.config.command_line import run_command

def main(argv):
  import jax
  jax.numpy.zeros(3)  # whose traceback does not show where devices start

run_command(main)
"""


def test_jax_processes_that_nothing_announces_are_refused(monkeypatch):
  def initialize(**options):  # as jax does; it would also refuse a process that has computed
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES=auto: jax finds no others here"):
    processes.start({"JAX_NUM_PROCESSES": "auto"}, heartbeat_seconds=10)


@pytest.mark.parametrize(
  ("variable", "message"),
  [
    ("JAX_PLATFORMS=foo", "Unable to initialize backend 'foo': Backend 'foo' is not in the list"),
    ("JAX_NUM_CPU_DEVICES=abc", 'Invalid value "abc" for JAX flag jax_num_cpu_devices; correct or'),
    ("JAX_TRACER_ERROR_NUM_TRACEBACK_FRAMES=abc", "invalid literal for int() with base 10: 'abc'"),
    ("JAX_ENABLE_X64=1", "numbers here have 32 bits at most; unset this variable"),
  ],
)
def test_a_variable_that_jax_cannot_take_is_one_line(variable, message):
  name, _, value = variable.partition("=")
  result = subprocess.run(
    [sys.executable, "-c", JAX_PROGRAM],
    capture_output=True,
    text=True,
    env={"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu", name: value},
  )
  assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
  assert result.stderr.startswith(f"error: {variable}: {message}")


def test_a_bug_keeps_its_traceback(program):
  result = program("--workdir=a", "--stop=Nonsense")
  assert result.returncode == 1 and "Traceback" in result.stderr


def test_an_error_that_nothing_can_catch_is_printed_unless_it_follows_one_that_is_told(program):
  assert program("--workdir=a", "--lost=Event loop is closed").stderr == ""
  assert "RuntimeError: a bug" in program("--workdir=a", "--lost=a bug").stderr


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_no_error_and_shows_no_flags_of_libraries(program, option):
  result = program("--config=nowhere.py", option)
  assert (result.returncode, result.stderr) == (0, "")
  assert "--workdir" in result.stdout and "--verbosity" not in result.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", ["--workdir=a", "--help", "--workdir=a --stop=UserError"])
def test_streams_that_are_closed(tmp_path, closed, arguments):
  (tmp_path / "program.py").write_text(PROGRAM)
  done = subprocess.run(
    ["sh", "-c", f"{sys.executable} program.py {arguments} {closed}"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env={"PYTHONPATH": ":".join(sys.path)},
    timeout=100,
  )
  assert done.returncode == (2 if "stop" in arguments else 0), done.stderr
  assert "Traceback" not in done.stderr and "Error" not in done.stderr


def test_the_version(program):
  result = program("--version")
  assert (result.returncode, result.stdout) == (0, f"mmesid_jax {mmesid_jax.__version__}\n")


def test_all_missing_flags_are_named_in_one_line():
  command = [sys.executable, "-c", ALL_MISSING]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.stderr == "error: --a, --b and one of --c, --d are missing; they must be given\n"
  result = subprocess.run([*command, "--c=1", "--d=2"], capture_output=True, text=True)
  assert result.stderr == "error: expected one of --c, --d; found --c and --d\n"


def test_a_name_is_a_configuration_of_a_clone_and_of_a_wheel(tmp_path, monkeypatch):
  assert "beauty" in named_configs.config_names()
  assert named_configs.config_file("beauty:paper").endswith("/configs/beauty.py:paper")
  (tmp_path / "mmesid_jax" / "configs").mkdir(parents=True)
  (tmp_path / "mmesid_jax" / "configs" / "mine.py").write_text(CONFIG)
  monkeypatch.setattr(
    named_configs, "__file__", str(tmp_path / "mmesid_jax" / "config" / "named_configs.py")
  )
  assert named_configs.config_names() == ["mine"]
  assert named_configs.config_file("mine") == str(tmp_path / "mmesid_jax" / "configs" / "mine.py")
  monkeypatch.chdir(tmp_path)
  for name in ("mine", "mine.py", "other"):  # a file is named by its path
    (tmp_path / name).write_text("")
  assert named_configs.config_file("mine:best").endswith("/configs/mine.py:best")
  for name in ("./mine", "mine.py", "./other"):
    assert named_configs.config_file(f"{name}:best") == f"{name}:best"
  with pytest.raises(UserError, match=r"--config=other: no configuration .*, as \./FILE"):
    named_configs.config_file("other")


def test_the_wheel_holds_configs(monkeypatch):
  """setup.py, run with a stand-in for setuptools: environments need not have it."""
  root, packages, given = pathlib.Path(__file__).parents[2], ["mmesid_jax"], {}
  stand_in = types.ModuleType("setuptools")
  stand_in.setup = given.update
  stand_in.find_namespace_packages = lambda include: packages
  monkeypatch.setitem(sys.modules, "setuptools", stand_in)
  runpy.run_path(str(root / "setup.py"))
  assert given["packages"] == ["mmesid_jax", "mmesid_jax.configs"]
  assert given["package_dir"] == {"mmesid_jax.configs": "configs"}


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("recommender.lr", "recommender.learning_rate"),
    ("collaborative.lr", "collaborative.learning_rate"),
    ("learning_rate", "recommender.learning_rate"),
    ("recommender.width", "recommender.widths"),
    ("sed", "seed"),
  ],
)
def test_nearest(name, expected):
  keys = ("seed", "recommender.learning_rate", "recommender.steps", "recommender.widths")
  assert (
    nearest_name(name, (*keys, "collaborative.layers", "collaborative.learning_rate")) == expected
  )


ALL_MISSING = """
from absl import flags
from mmesid_jax.config.command_line import require_flags, run_command

for name in "abcd":
  flags.DEFINE_string(name, None, "Needed.")
run_command(lambda argv: require_flags("a", "b", ("c", "d")))
"""

SUBCOMMANDS = """
from absl import flags
from mmesid_jax.config.command_line import run_command

NAME = flags.DEFINE_string("name", None, "Needed.", required=True)
run_command(lambda argv: print(argv[1:], NAME.value), subcommands=("encode", "decode"))
"""


def test_a_subcommand_is_the_first_word_and_reaches_main():
  def run(*arguments):
    command = [sys.executable, "-c", SUBCOMMANDS, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stderr.count("\n") <= 1, result.stderr
    return result.returncode, result.stdout + result.stderr

  assert run("decode", "--name=a") == (0, "['decode'] a\n")
  assert run("encod", "--name=a") == (
    2,
    "error: encod: no such subcommand; expected encode or decode\n",
  )
  assert run("--name=a") == (
    2,
    "error: the first word must be a subcommand: encode or decode\n",
  )
  assert "unexpected argument 'decode'" in run("encode", "--name=a", "decode")[1]
  assert "--name is missing" in run("encode")[1]
