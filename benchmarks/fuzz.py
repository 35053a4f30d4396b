"""Gives damaged and hostile files to every reader:
python benchmarks/fuzz.py --count=1000000 [--seed=0]

Each input is a whole file in which something is damaged: bits, length fields, types, texts, depth,
its end. A reader may return, or raise this project's own error of one line. Everything else is a
finding: another exception, a process that dies, more than 10 seconds, more than 4 GiB of memory, a
file written outside of the reader's folder, a connection, another process, an unpickled name.

Prints the number of inputs by reader and every finding, and keeps the files of a finding in
OUTPUT/NUMBER. Input NUMBER is the same for the same seed: --first=NUMBER --count=1 repeats it.
Exit status 1 where there are findings.
"""

import bisect
import collections
import dataclasses
import itertools
import math
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings

from mmesid_jax.config import command_line
from mmesid_jax.display import reporter
from mmesid_jax.errors import Stop

SECONDS = 10.0  # for one input
MEMORY_DISK = "/dev/shm"  # where there is one: a disk takes more time than the readers
MEMORY = 4 * 2**30  # bytes more than at the start
HEAD = 3  # shared numbers before the counts by reader: the input, since when, the reader
# Events of Python's audit hook that no reader of a file may cause.
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
FORBIDDEN += ("socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen", "builtins.input")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod")


@dataclasses.dataclass(frozen=True)
class Finding:
  """An input that a reader did not take as it should."""

  number: int
  reader: str
  text: str


class Watch:
  """Notes what a reader does outside of its folder, while it is on."""

  def __init__(self, folder: pathlib.Path):
    self._prefix, self.on, self.noted = str(folder) + os.sep, False, ""
    sys.addaudithook(self._hook)

  def _path(self, path: str | bytes, folder: object) -> str:
    """The whole path; `folder` may be a number of an open folder that it starts from."""
    above = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
    return os.path.realpath(os.path.join(above, os.fsdecode(path)))

  def _hook(self, event: str, arguments: tuple) -> None:
    if not self.on:
      return
    if event in FORBIDDEN:
      self.noted = f"{event} {arguments!r:.200}"
    elif event == "open" and isinstance(arguments[2], int):
      writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
      if writes and isinstance(arguments[0], str | bytes):
        self._note_path(event, self._path(arguments[0], None))
    elif event in CHANGES and isinstance(arguments[0], str | bytes):
      self._note_path(event, self._path(arguments[0], arguments[-1]))

  def _note_path(self, event: str, path: str) -> None:
    if not (path + os.sep).startswith(self._prefix) and not path.startswith("/dev/"):
      self.noted = f"{event} outside of its folder: {path}"


class Inputs:
  """The inputs by number: a reader, and its files with the damage."""

  def __init__(self, readers, seed: int):
    self.readers, self._seed = readers, seed
    self._ends = list(itertools.accumulate(reader.weight for reader in readers))

  def make(self, number: int):
    """Returns the reader and the files that differ from its whole ones."""
    draw = random.Random(f"{self._seed} {number}")
    reader = self.readers[bisect.bisect(self._ends, draw.random() * self._ends[-1])]
    names = draw.sample(sorted(reader.damage), min(draw.choice((1, 1, 1, 2)), len(reader.damage)))
    return reader, {name: reader.damage[name](reader.files[name], draw) for name in names}


def run_inputs(inputs: Inputs, numbers, folder: pathlib.Path, on_input, on_finding) -> None:
  """Gives the inputs of these numbers to their readers, in this process.

  on_input is called with the number and the place of the reader before each, on_finding with a
  Finding. The readers' folders are made in `folder`.
  """
  watch, places = Watch(folder), {}
  for place, reader in enumerate(inputs.readers):
    places[reader.name, id(reader)] = place
    for name, content in reader.files.items():
      path = folder / str(place) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
  for number in numbers:
    reader, files = inputs.make(number)
    place = places[reader.name, id(reader)]
    own = folder / str(place)
    for name, content in files.items():
      (own / name).write_bytes(content)
    on_input(number, place)
    watch.noted, found, watch.on = "", "", True
    try:
      reader.read(own)
    except Stop as error:
      found = "" if str(error).strip() else "an error without a message"
    except BaseException as error:  # polars' panics are none of Exception
      found = "".join(traceback.format_exception(error)[-3:])
      if isinstance(error, KeyboardInterrupt):
        raise
    finally:
      watch.on = False
    if found or watch.noted:
      on_finding(Finding(number, reader.name, watch.noted or found))
    _restore(own, reader, files)


def _restore(folder: pathlib.Path, reader, files) -> None:
  """Writes the whole files again, and removes what the reader wrote."""
  for name in files:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(reader.files[name])
  if reader.writes:
    shutil.rmtree(folder)
    for name, content in reader.files.items():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes(content)


def load_inputs(seed: int, name: str) -> Inputs:
  """All readers whose name contains `name`."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))  # its tiny checkpoint
  import fuzz_readers

  return Inputs([r for r in fuzz_readers.all_readers() if name in r.name], seed)


def _work(seed: int, name: str, numbers: range, now, messages) -> None:
  """The child: says in `now` which input it reads and since when, and counts by reader."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what native code says of damaged files
  reporter.mute()
  warnings.simplefilter("ignore")
  inputs = load_inputs(seed, name)
  messages.put([reader.name for reader in inputs.readers])
  own = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))

  def on_input(number: int, place: int) -> None:
    now[0], now[1], now[2] = number, time.monotonic(), place
    now[HEAD + place] += 1

  place = MEMORY_DISK if os.path.isdir(MEMORY_DISK) else None
  with tempfile.TemporaryDirectory(dir=place) as folder:
    work = pathlib.Path(folder).resolve() / "work"
    work.mkdir()
    run_inputs(inputs, numbers, work, on_input, messages.put)
    if left := [path.name for path in pathlib.Path(folder).iterdir() if path != work]:
      messages.put(Finding(numbers.stop - 1, "any", f"files outside of the folder: {left}"))
    now[1] = math.inf


def fuzz(seed: int, name: str, numbers: range, counts: collections.Counter):
  """Yields every Finding of the inputs, read in a child that is replaced where it dies or hangs.

  `counts` gets the number of inputs by the name of the reader.
  """
  context = multiprocessing.get_context("spawn")
  now = context.Array("d", HEAD + 256, lock=False)
  messages, names, first = context.SimpleQueue(), [], numbers.start

  def received():
    nonlocal names
    while not messages.empty():
      message = messages.get()
      if isinstance(message, Finding):
        yield message
      else:
        names = message

  while first < numbers.stop:
    now[0], now[1], now[2] = first, math.inf, 0
    left = range(first, numbers.stop)
    child = context.Process(target=_work, args=(seed, name, left, now, messages))
    child.start()
    hung = False
    while child.is_alive():
      child.join(0.2)
      yield from received()
      if not hung and (hung := time.monotonic() - now[1] > SECONDS):
        child.kill()
    yield from received()
    if not names:
      raise Stop(f"--reader={name}: the readers could not be set up, or none has such a name")
    if child.exitcode == 0:
      break
    reason = f"longer than {SECONDS:g} seconds" if hung else f"died, status {child.exitcode}"
    yield Finding(int(now[0]), names[int(now[2])], reason)
    first = int(now[0]) + 1
  for place, reader in enumerate(names):
    counts[reader] += int(now[HEAD + place])


def main(argv: list[str]) -> None:
  del argv
  start, output, inputs, found = time.monotonic(), pathlib.Path(OUTPUT.value), None, 0
  numbers = range(FIRST.value, FIRST.value + COUNT.value)
  counts: collections.Counter[str] = collections.Counter()
  for finding in fuzz(SEED.value, READER.value, numbers, counts):
    found += 1
    print(f"input {finding.number}, {finding.reader}: {finding.text}", flush=True)
    reporter.mute()  # what making the whole files says
    inputs = inputs or load_inputs(SEED.value, READER.value)
    for name, content in inputs.make(finding.number)[1].items():
      path = output / str(finding.number) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
  rate = counts.total() / (time.monotonic() - start)
  print(f"{counts.total():,} inputs, {rate:,.0f} a second, seed {SEED.value}: {found} findings")
  for name, count in counts.most_common():
    print(f"{count:>12,}  {name}")
  if found:
    raise Stop(f"{found} findings; their files are in {output}")


if __name__ == "__main__":
  from absl import flags

  COUNT = flags.DEFINE_integer("count", 10_000, "Number of inputs.", lower_bound=1)
  FIRST = flags.DEFINE_integer("first", 0, "Number of the first input.", lower_bound=0)
  SEED = flags.DEFINE_integer("seed", 0, "Of the inputs.")
  READER = flags.DEFINE_string("reader", "", "Only readers whose name contains this.")
  OUTPUT = flags.DEFINE_string("output", "runs/fuzz", "Folder for the files of findings.")
  command_line.run_command(main)
