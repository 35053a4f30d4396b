"""Kills a run again and again at random moments, and looks whether anything was lost:
python benchmarks/torture.py --output=runs/torture [--kills=50]

The quickstart runs once in peace. Then it is started and killed (SIGKILL) until so many kills are
done; where it ends before, another one begins. Every checkpoint of these runs is held back for a
random time before it gets its name. Every run that was killed must end with the artifacts and the
metrics of the first, to the last bit. Prints where the kills fell and whether that is so, and
writes OUTPUT/torture.json. Exit status 1 where anything differs.
"""

import collections
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import time

import timing
from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import Stop

OUTPUT = flags.DEFINE_string("output", None, "Folder for the runs; those that are there go on.")
KILLS = flags.DEFINE_integer("kills", 50, "How often.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
LONGEST = flags.DEFINE_float("longest", 60.0, "Seconds that a run lives at the most.")
HOLD = flags.DEFINE_float("hold", 2.0, "Seconds that a checkpoint is held back at the most.")
CHANGES = flags.DEFINE_list("changes", ["run.save_every=5"], "Keys of the configuration: a.b=c.")
flags.mark_flag_as_required("output")

STAGES = ("collaborative", "semantic_ids", "recommender")  # those that train step by step
ROOT = pathlib.Path(__file__).parents[1]


def main(argv: list[str]) -> None:
  del argv
  output = pathlib.Path(OUTPUT.value).absolute()
  whole, rng = output / "whole", random.Random(SEED.value)
  output.mkdir(parents=True, exist_ok=True)
  if start(whole, hold=0).wait() != 0:
    raise Stop(f"{whole}: the run in peace failed; its output is in {log_of(whole)}")
  where: collections.Counter[str] = collections.Counter()
  different: list[str] = []
  for number in itertools.count(1):
    workdir = output / f"killed-{number}"
    while where.total() < KILLS.value:
      process = start(workdir, hold=HOLD.value)
      try:
        status = process.wait(rng.uniform(1, LONGEST.value))
      except subprocess.TimeoutExpired:
        moment = moment_of(workdir)
        process.kill()
        process.wait()
        where[moment] += 1
        print(f"kill {where.total()} of {KILLS.value}: {workdir.name}, {moment}", flush=True)
        continue
      if status != 0:
        raise Stop(f"{workdir}: ended with status {status}; its output is in {log_of(workdir)}")
      break
    if start(workdir, hold=0).wait() != 0:  # whatever was left to do
      raise Stop(f"{workdir}: does not go on; its output is in {log_of(workdir)}")
    different += [f"{workdir.name}: {name}" for name in differences(whole, workdir)]
    if where.total() >= KILLS.value:
      break
  print(f"\n{where.total()} kills of {number} runs")
  for moment, count in where.most_common():
    print(f"{count:4}  {moment}")
  print("different from the run in peace:", ", ".join(different) or "nothing")
  figures = {"environment": timing.environment(), "kills": where, "runs": number}
  timing.write(output / "torture.json", figures | {"different": different})
  if different:
    raise Stop(f"{len(different)} results differ")


def log_of(workdir: pathlib.Path) -> pathlib.Path:
  return workdir.with_suffix(".log")


def start(workdir: pathlib.Path, *, hold: float) -> subprocess.Popen:
  command = [sys.executable, "benchmarks/held_back_train.py", "--config=configs/quickstart.py"]
  command += [f"--workdir={workdir}", *(f"--config.{change}" for change in CHANGES.value)]
  with log_of(workdir).open("a") as log:
    environment = os.environ | {"HOLD_SECONDS": str(hold)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def moment_of(workdir: pathlib.Path) -> str:
  """What the run was doing, from what it has written so far."""
  done = [stage for stage in STAGES if (workdir / f"{stage}.safetensors").exists()]
  if len(done) == len(STAGES):
    return "evaluating"
  stage = STAGES[len(done)]
  steps = workdir / stage / "steps"
  if not steps.exists():
    return f"before {stage}"
  if any(
    "tmp" in path.name
    for folder in ("steps", "best")
    for path in (workdir / stage / folder).glob("*")
  ):
    return f"{stage}, saving"
  log = workdir / stage / "metrics.jsonl"
  fresh = log.exists() and time.time() - log.stat().st_mtime < 5
  return f"{stage}, training" if fresh else f"{stage}, starting"


def differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
  """The artifacts and metrics that are not those of the run in peace."""
  from safetensors.numpy import load_file

  found = []
  for stage in sorted(path.stem for path in whole.glob("*.safetensors")):
    a, b = (load_file(path / f"{stage}.safetensors") for path in (whole, killed))
    if a.keys() != b.keys() or any(a[k].tobytes() != b[k].tobytes() for k in a):
      found.append(stage)
  a, b = (json.loads((path / "evaluation.json").read_text()) for path in (whole, killed))
  return found + (["metrics"] if a["models"] != b["models"] else [])


if __name__ == "__main__":
  command_line.run_command(main)
