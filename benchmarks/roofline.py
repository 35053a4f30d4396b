"""What Llama-3-8B should cost, predicted from shapes: python benchmarks/roofline.py --data=DIR
--output=runs/roofline

One training step, an epoch of Beauty and the evaluation of its test users, as
configs/beauty_llama3_8b.py has them: `paper`, with three modalities 64, 1280 and 1280 wide, 4 x 256
codes, a prompt of 34 tokens and a response of 5. Without --data users are invented (users.py): as
many as in Beauty, of 4 items and a geometric number more, the same mean. Prints tables, writes
OUTPUT/roofline.json. No accelerator is needed.

A step is a list of kernels. Each takes the longer of operations / (peak x --compute) and bytes /
(bandwidth x --memory); they follow one another without gaps. Peaks are from data sheets, dense.
Operations are counted from shapes, two a multiplication and addition, padding included. Bytes are
what a kernel reads and writes of the device's memory, once each, where

* a matrix product reads its factors and writes its result; the second product of LoRA is added to
  what is there; float32 products run as TF32 on GPUs, half as fast, and in one pass on TPUs;
* element-wise work is fused into one kernel between two products: residual and norm, rotation,
  joining the prompt's keys to the rows', silu times up;
* attention by a flash kernel holds no scores and computes all pairs, seen or not; XLA's writes them
  in float32, and its softmax reads them once;
* LoRA's dropout takes a random number an element of its input, 25 integer operations of Philox (45
  on TPUs, which have no product of double width): forward, and where it is computed again;
* quantised weights are made bfloat16 in memory before every product; on GPUs bfloat16 ones are
  copied out of the stack of layers before every product, as XLA does without
  --xla_gpu_enable_dynamic_slice_fusion;
* what a layer keeps is written to the stack, and read in the backward pass;
* AdamW reads parameter, gradient (twice, clipping) and moments, and writes all but the gradient.

Kept activations are what jax hands from the forward to the backward pass, traced at these sizes. A
flash kernel keeps its output and a float32 a query instead of the pairs. The largest temporary is
that of one layer's backward pass, or the gradients inside the item encoder. Parts of the memory are
added up as if all were there at once, and fit where they take no more than 90 %.
"""

import dataclasses
import itertools
import pathlib
import runpy
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags
from timing import write

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
DATA = flags.DEFINE_string("data", None, "A data set's folder; without one, invented users.")
PRESET = flags.DEFINE_string("preset", "paper", "Of the configuration.")
DEVICE = flags.DEFINE_string("device", "H200", "Whose step is told in detail.")
COMPUTE = flags.DEFINE_float("compute", 0.75, "Part of the peak that matrix products reach.")
MEMORY = flags.DEFINE_float("memory", 0.8, "Part of the bandwidth that kernels reach.")

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "beauty_llama3_8b.py"
LLAMA3_8B = {
  **{"width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "head_width": 128},
  **{"mlp_width": 14_336, "rope_theta": 500_000.0, "norm_eps": 1e-5},
  **{"prompt.length": 34, "prompt.response": 5},
}
WIDTHS = {"collaborative": 64, "text": 1280, "visual": 1280}
WEIGHTS, REMATS = ("bfloat16", "int8", "nf4"), ("none", "products", "layers")
FITS = 0.9  # of the memory
PHASES = ("forward", "again", "backward", "update")
SUMS = ("operations", "bytes", "seconds")
GIB = 2**30


class Epoch(NamedTuple):
  """Targets and tokens of an epoch; what its batches ask for (the last one goes on into the next
  epoch), and their layout; the test's layout and number of batches."""

  targets: int
  tokens: int
  work: list
  layout: Any
  test_layout: Any
  test_batches: int


def main(argv: list[str]) -> None:
  del argv
  import kernels
  import users

  device = {d.name: d for d in kernels.DEVICES}.get(DEVICE.value)
  if device is None:
    raise UserError(
      f"--device={DEVICE.value}: expected one of {', '.join(d.name for d in kernels.DEVICES)}"
    )
  config, dataset = configuration(PRESET.value), users.read(DATA.value)
  model = build(config, dataset)
  epoch = pack(config, dataset)
  kept = {remat: kernels.kept(model, epoch.layout, remat) for remat in REMATS}
  c, compute = model.backbone.config, model.items.compute
  base = kernels.Step(model, c, epoch.layout, compute, kept)
  rows = [
    {"device": d.name, "weights": weights, "remat": remat}
    | predicted(with_backbone(base, weights=weights, remat=remat), d, epoch)
    for d in kernels.DEVICES
    for weights in WEIGHTS
    for remat in REMATS
  ]
  told = {
    "assumed": {"compute": COMPUTE.value, "memory": MEMORY.value, "fits": FITS},
    "trained": kernels.trained(model),
    "targets": epoch.targets,
    "tokens": epoch.tokens,
    "batches": len(epoch.work),
    "rows": rows,
    "parts": parts(base, device),
    "changes": changes(base, device),
    "memory": {r: kernels.memory(with_backbone(base, remat=r)) for r in REMATS},
  }
  print(table(told, base, epoch))
  print(details(told, base))
  if OUTPUT.value:
    write(pathlib.Path(OUTPUT.value) / "roofline.json", told)


def configuration(preset: str):
  """The file's, with the sizes that a checkpoint of Llama-3-8B and its tokenizer say."""
  config = runpy.run_path(str(CONFIG))["get_config"](preset)
  config.recommender.update_from_flattened_dict(LLAMA3_8B)
  config.recommender.backbone.attention = "xla"  # what is kept is traced with it
  return config


def build(config, dataset):
  """The recommender as shapes."""
  from mmesid_jax.planning import memory as footprint

  widths = {m: min(V, config.recommender.whiten or V) for m, V in WIDTHS.items()}
  return footprint.model_shapes(config, dataset.num_items + 1, widths)


def pack(config, dataset) -> Epoch:
  """The batches of the first epoch, as the stage packs them, and of the test users."""
  from mmesid_jax.data.batches import batch_pieces
  from mmesid_jax.data.history_pieces import evaluation_pieces
  from mmesid_jax.data.row_layout import with_rows_for
  from mmesid_jax.models.flops import useful_work
  from mmesid_jax.stages import recommender_stage
  from mmesid_jax.stages.sequence_task import evaluation_layout

  c = config.recommender
  batches, counts = recommender_stage.make_batches(config, dataset)
  pieces, layout = batches.pieces, batches.layout
  work = [useful_work(packer.batch(), c.prompt.length) for packer in batches.first_epoch()]
  tested = evaluation_pieces(dataset, layout, "test")
  test_layout = evaluation_layout(recommender_stage.batch_layout(c), config.evaluation.targets)
  test_layout = with_rows_for(test_layout, tested)
  tokens = layout.tokens(pieces.stop - pieces.start, pieces.stop - pieces.first_target).sum()
  test_batches = sum(1 for _ in batch_pieces(dataset, tested, test_layout))
  return Epoch(counts.targets, int(tokens), work, layout, test_layout, test_batches)


def with_backbone(step, **changed):
  """The step with other values of its LlamaConfig."""
  return dataclasses.replace(step, c=dataclasses.replace(step.c, **changed))


def seconds(step, device) -> float:
  from kernels import kernels

  return sum(k.seconds(device, COMPUTE.value, MEMORY.value) for k in kernels(step, device))


def predicted(step, device, epoch: Epoch) -> dict[str, Any]:
  """Of training and evaluation: seconds, MFU as benchmarks/FLOPS.md has it, memory."""
  from kernels import memory

  from mmesid_jax.models import flops

  test = dataclasses.replace(step, layout=epoch.test_layout, training=False)
  asked = sum(flops.recommender_flops(step.model, work) for work in epoch.work) / len(epoch.work)
  a_step = seconds(step, device)
  return {
    "step": a_step,
    "mfu": asked / a_step / device.half,
    "epoch": a_step * len(epoch.work),
    "evaluation": seconds(test, device) * epoch.test_batches,
    "bytes": sum(memory(step).values()),
    "fits": fits(step, device),
  }


def fits(step, device) -> bool:
  from kernels import memory

  return sum(memory(step).values()) <= FITS * device.memory


def parts(step, device) -> dict[str, dict[str, dict[str, float]]]:
  """part -> phase -> operations, bytes and seconds of a step."""
  from kernels import kernels

  found: dict = {}
  for k in kernels(step, device):
    phases = found.setdefault(k.part, {})
    sums = phases.setdefault(k.phase, dict.fromkeys(SUMS, 0.0))
    sums["operations"] += k.times * k.operations * (k.unit != "random")
    sums["bytes"] += k.times * k.bytes
    sums["seconds"] += k.seconds(device, COMPUTE.value, MEMORY.value)
  return found


def changes(step, device) -> dict[str, float]:
  """Seconds of the step if one thing is otherwise, by that thing, quickest first, where it fits;
  the first is the quickest pair of things."""

  def with_(**changed):
    return lambda step: dataclasses.replace(step, **changed)

  def backbone(**changed):
    return lambda step: with_backbone(step, **changed)

  other = {
    **{f"remat {x}": backbone(remat=x) for x in REMATS if x != step.c.remat},
    **{f"weights {x}": backbone(weights=x) for x in WEIGHTS if x != step.c.weights},
    "LoRA without dropout": backbone(lora=dataclasses.replace(step.c.lora, dropout=0.0)),
    "weights read where they are": with_(copies=False),
    "scores of attention in memory": with_(flash=False),
    "item encoder in float32": with_(compute="float32"),
    "a place for an item a token": with_(layout=dataclasses.replace(step.layout, items=0)),
  }
  other = {name: change for name, change in other.items() if fits(change(step), device)}
  found = {name: seconds(change(step), device) for name, change in other.items()}
  pairs = {
    f"{a}, and {b}": seconds(other[a](other[b](step)), device)
    for a, b in itertools.combinations(other, 2)
  }
  best = sorted(pairs.items(), key=lambda pair: pair[1])[:1]
  return dict(best + sorted(found.items(), key=lambda pair: pair[1]))


def table(told: Mapping[str, Any], step, epoch: Epoch) -> str:
  """What is predicted for every device."""
  layout, test = step.layout, epoch.test_layout
  lines = [
    f"{told['trained'] / 1e6:,.1f} M trained. An epoch: {told['targets']:,} targets, "
    f"{told['tokens']:,} tokens, in {told['batches']} steps of {layout.rows} x {layout.row_length} "
    f"places, {layout.item_places:,} of items, {layout.targets} of targets, and {step.P} tokens of "
    f"prompt. Test: {epoch.test_batches} batches of {test.rows} x {test.row_length}.",
    "",
    f"Predicted, not measured: products reach {COMPUTE.value:.0%} of the peak, kernels "
    f"{MEMORY.value:.0%} of the bandwidth",
    "",
    "device    weights   remat       step s    MFU  epoch s  evaluation s  memory GiB",
  ]
  for r in told["rows"]:
    lines.append(
      f"{r['device']:9} {r['weights']:9} {r['remat']:9} {r['step']:8.3f} {r['mfu']:6.1%} "
      f"{r['epoch']:8.0f} {r['evaluation']:13.1f} {r['bytes'] / GIB:11.1f}"
      f"{'' if r['fits'] else '  does not fit'}"
    )
  return "\n".join(lines)


def details(told: Mapping[str, Any], step) -> str:
  """Where the step's time goes, what else it could be, and what it holds."""
  parts = told["parts"]
  total = sum(sums["seconds"] for phases in parts.values() for sums in phases.values())
  head = f"{DEVICE.value}, {step.c.weights}, remat {step.c.remat}: {total * 1e3:.0f} ms a step"
  lines = ["", f"{head:45} TFLOP     GB     ms   part" + "".join(f"{p:>10}" for p in PHASES)]
  for part, phases in parts.items():
    operations, moved, spent = (sum(x[key] for x in phases.values()) for key in SUMS)
    by_phase = (f"{phases[p]['seconds'] * 1e3:10.1f}" if p in phases else " " * 10 for p in PHASES)
    lines.append(
      f"{part:45} {operations / 1e12:6.2f} {moved / 1e9:6.1f} {spent * 1e3:6.1f} "
      f"{spent / total:6.1%}{''.join(by_phase)}"
    )
  lines += ["", f"{'one thing otherwise, and the best two':65}     ms  saves"]
  for name, changed in told["changes"].items():
    lines.append(f"{name:65} {changed * 1e3:6.0f} {(total - changed) * 1e3:6.0f}")
  lines += ["", f"{'memory, GiB':25}" + "".join(f"{remat:>10}" for remat in told["memory"])]
  for part in told["memory"]["none"]:
    by_remat = (f"{held[part] / GIB:10.2f}" for held in told["memory"].values())
    lines.append(f"{part:25}{''.join(by_remat)}")
  return "\n".join(lines)


if __name__ == "__main__":
  command_line.run_command(main)
