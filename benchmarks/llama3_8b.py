"""Llama-3-8B with LoRA on one accelerator, everything that is to be known in one command:

  python benchmarks/llama3_8b.py --size=llama3_8b --output=runs/llama3_8b --data=DIR

The training step with either kernel of attention and every way to keep activations; the quickest of
them with 8- and 4-bit weights; the evaluation of all test users; PyTorch, as the released code
trains and as a careful engineer would. Weights are random: speed and memory do not ask what they
are. Every part is a command of recommender_step.py, with a limit of time; of one that fails, for
want of memory perhaps, the last line that it said is kept. Prints a table last, and writes
OUTPUT/llama3_8b.json after every part. --size=toy tries the same on a CPU.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import flags
from timing import environment, write

from mmesid_jax import cli

SIZE = flags.DEFINE_enum("size", "llama3_8b", ["toy", "llama3_8b"], "Of the model.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
DATA = flags.DEFINE_string("data", None, "A data set's folder; without one, users are invented.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that count.", lower_bound=1)
LIMIT = flags.DEFINE_integer("limit", 150, "Seconds that a part may take.")
flags.mark_flags_as_required(["output"])

STEPS = {  # changes of config.recommender
  "remat layers": ["backbone.remat=layers"],
  "remat products": ["backbone.remat=products"],
  "remat none": ["backbone.remat=none"],
  "remat products, XLA's attention": ["backbone.remat=products", "backbone.attention=xla"],
}
STORED = ("int8", "nf4")
OTHERS = ("alone", "torch_good", "torch_released")


def main(argv: list[str]) -> None:
  del argv
  output, found = pathlib.Path(OUTPUT.value), {}

  def part(name: str, contestant: str, changes: list[str]) -> dict[str, Any]:
    found[name] = run(output / name.replace(" ", "-").replace(",", ""), contestant, changes)
    write(output / "llama3_8b.json", {"environment": environment(), "parts": found})
    return found[name]

  for name, changes in STEPS.items():
    part(name, "packed", changes)
  quickest = max(STEPS, key=lambda name: found[name].get("targets_per_second", 0))
  for weights in STORED:
    part(f"{quickest}, {weights}", "packed", [*STEPS[quickest], f"backbone.weights={weights}"])
  part("evaluation", "evaluation", STEPS[quickest])
  for name in OTHERS:
    part(name, name, STEPS["remat layers"])
  print(table(found, quickest))


def run(folder: pathlib.Path, contestant: str, changes: list[str]) -> dict[str, Any]:
  """The contestant's figures, or {"failed": why}."""
  command = [
    *(sys.executable, str(pathlib.Path(__file__).with_name("recommender_step.py"))),
    *(f"--size={SIZE.value}", "--variant=paper_prompt", f"--contestants={contestant}"),
    *(f"--output={folder}", f"--rounds={ROUNDS.value}", *(f"--set={c}" for c in changes)),
    *([f"--data={DATA.value}"] if DATA.value else []),
  ]
  print(" ".join(command), flush=True)
  try:
    done = subprocess.run(
      command,
      env=os.environ | {"JAX_TRACEBACK_FILTERING": "off"},  # whose notice would come last
      stderr=subprocess.PIPE,
      text=True,
      timeout=LIMIT.value,
    )
  except subprocess.TimeoutExpired:
    return {"failed": f"more than {LIMIT.value} s"}
  if done.returncode:
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"failed": said[-1][:200] if said else f"status {done.returncode}"}
  figures = json.loads((folder / "recommender_step.json").read_text())
  return figures["contestants"][contestant]


def table(found: dict[str, dict[str, Any]], quickest: str) -> str:
  """A line a part; how many times as fast as it the quickest of ours is."""
  best = found[quickest].get("targets_per_second")
  width = max(map(len, found))
  lines = [f"{'':{width}}  targets/s     MFU  epoch of Beauty, s  memory, GiB  {quickest} is"]
  for name, f in found.items():
    if "failed" in f:
      lines.append(f"{name:{width}}  {f['failed']}")
      continue
    rate, (mfu, memory) = f["targets_per_second"], (f["mfu"], f["peak_gib"])
    line = f"{name:{width}} {rate:10,.1f} {f'{mfu:.1%}' if mfu else '-':>7}"
    line += f" {f['beauty_epoch_seconds']:19,.0f} {f'{memory:.1f}' if memory else '-':>12}"
    lines.append(line + f"  {best / rate:.1f} x")
    if name == "evaluation":  # its targets are test users, and there is no epoch
      seconds = f"all test users in {f['targets'] / rate:,.1f} s"
      lines[-1] = f"{name:{width}} {rate:10,.1f} users/s, {seconds}"
  return "\n".join(lines)


if __name__ == "__main__":
  cli.run(main)
