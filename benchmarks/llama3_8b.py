"""Llama-3-8B with LoRA on one accelerator, everything that is to be known in one command:

  python benchmarks/llama3_8b.py --size=llama3_8b --output=runs/llama3_8b --data=DIR

The training step with either kernel of attention, every way to keep activations and frozen weights,
and without what the roofline says it spends beside its products; the evaluation of all test users;
one sample per target; PyTorch, as the released code trains and as a careful engineer would. Weights
are random: speed and memory do not ask what they are. Every part is a command of
recommender_step.py, with a limit of time; of one that fails, for want of memory perhaps, the last
line that it said is kept, and all of them in OUTPUT/PART/stderr.txt. Prints a table last, and
writes OUTPUT/llama3_8b.json after every part. --parts takes a few; --size=toy tries the same on a
CPU.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import flags
from timing import write

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError


class Part(NamedTuple):
  """contestant: of recommender_step.py; changes: of config.recommender; xla: flags of XLA's."""

  contestant: str
  changes: tuple[str, ...]
  xla: str = ""


PRODUCTS, LAYERS = "backbone.remat=products", "backbone.remat=layers"
PARTS = {
  "products": Part("packed", (PRODUCTS,)),
  "torch_good": Part("torch_good", (LAYERS,)),
  "torch_released": Part("torch_released", (LAYERS,)),
  "evaluation": Part("evaluation", (PRODUCTS,)),
  "layers": Part("packed", (LAYERS,)),
  "nf4": Part("packed", (PRODUCTS, "backbone.weights=nf4")),
  "int8": Part("packed", (PRODUCTS, "backbone.weights=int8")),
  "xla_attention": Part("packed", (PRODUCTS, "backbone.attention=xla")),
  "no_lora_dropout": Part("packed", (PRODUCTS, "lora.dropout=0.0")),
  "fused_slices": Part("packed", (PRODUCTS,), "--xla_gpu_enable_dynamic_slice_fusion=true"),
  "none": Part("packed", ("backbone.remat=none",)),
  "alone": Part("alone", (LAYERS,)),
}

SIZE = flags.DEFINE_enum("size", "llama3_8b", ["toy", "llama3_8b"], "Of the model.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
DATA = flags.DEFINE_string("data", None, "A data set's folder; without one, users are invented.")
NAMES = flags.DEFINE_list("parts", list(PARTS), "Which parts, in what order.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that count.", lower_bound=1)
LIMIT = flags.DEFINE_integer("limit", 150, "Seconds that a part may take.")
flags.mark_flags_as_required(["output"])


def main(argv: list[str]) -> None:
  del argv
  if unknown := [name for name in NAMES.value if name not in PARTS]:
    raise UserError(f"--parts: no {unknown[0]!r}; expected some of {', '.join(PARTS)}")
  output, found = pathlib.Path(OUTPUT.value), {}
  for name in NAMES.value:
    found[name] = run(output / name, PARTS[name])
    write(output / "llama3_8b.json", {"parts": found})
  print(table(found))


def run(folder: pathlib.Path, part: Part) -> dict[str, Any]:
  """The contestant's figures and environment, or {"failed": why}, and the seconds that it took from
  its start. A process of its own each: none may hold the accelerator's memory beside another."""
  command = [
    *(sys.executable, str(pathlib.Path(__file__).with_name("recommender_step.py"))),
    *(f"--size={SIZE.value}", "--variant=paper_prompt", f"--contestants={part.contestant}"),
    *(f"--output={folder}", f"--rounds={ROUNDS.value}", *(f"--set={c}" for c in part.changes)),
    *([f"--data={DATA.value}"] if DATA.value else []),
  ]
  print(" ".join(filter(None, [part.xla, *command])), flush=True)
  variables = os.environ | {"JAX_TRACEBACK_FILTERING": "off"}  # whose notice would come last
  if part.xla:
    variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {part.xla}"
  folder.mkdir(parents=True, exist_ok=True)
  start = time.monotonic()
  try:
    with open(folder / "stderr.txt", "w") as stderr:
      subprocess.run(
        command, env=variables, stderr=stderr, text=True, timeout=LIMIT.value, check=True
      )
  except subprocess.TimeoutExpired:
    figures = {"failed": f"more than {LIMIT.value} s"}
  except subprocess.CalledProcessError as error:
    said = [x for x in (folder / "stderr.txt").read_text().splitlines() if x.strip()]
    figures = {"failed": said[-1][:200] if said else f"status {error.returncode}"}
  else:
    said = json.loads((folder / "recommender_step.json").read_text())
    figures = said["contestants"][part.contestant] | {"environment": said["environment"]}
  return figures | {"seconds": round(time.monotonic() - start, 1)}


def table(found: dict[str, dict[str, Any]]) -> str:
  """A line a part; how many times as fast as it the quickest step of ours is."""
  trained = [f for name, f in found.items() if PARTS[name].contestant == "packed"]
  best = max((f.get("targets_per_second", 0) for f in trained), default=0)
  width = max(map(len, found))
  lines = [f"{'':{width}}  targets/s     MFU  epoch of Beauty, s  memory, GiB  the quickest is"]
  for name, f in found.items():
    if "failed" in f:
      lines.append(f"{name:{width}}  {f['failed']}")
      continue
    rate, (mfu, memory) = f["targets_per_second"], (f["mfu"], f["peak_gib"])
    if name == "evaluation":  # its targets are test users, and there is no epoch
      seconds = f"all test users in {f['targets'] / rate:,.1f} s"
      lines.append(f"{name:{width}} {rate:10,.1f} users/s, {seconds}")
      continue
    line = f"{name:{width}} {rate:10,.1f} {f'{mfu:.1%}' if mfu else '-':>7}"
    line += f" {f['beauty_epoch_seconds']:19,.0f} {f'{memory:.1f}' if memory else '-':>12}"
    lines.append(line + (f"  {best / rate:.1f} x" if best else ""))
  return "\n".join(lines)


if __name__ == "__main__":
  command_line.run_command(main)
