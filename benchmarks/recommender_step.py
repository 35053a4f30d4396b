"""How many targets a second the recommender trains on, ours and in PyTorch:

  python benchmarks/recommender_step.py --size=beauty --variant=best --output=runs/step --data=DIR

Contestants train on one pool of targets, those of a few packed batches:

  packed           ours: rows in which a user's targets share the history, and all rows the prompt
  alone            ours, one sample per target, samples of similar length in a batch
  packed_backbone, alone_backbone
                   their hidden states and gradients alone: no scores, no update
  torch_released   PyTorch as the released code has it, micro-batches of 2, 8 a step; runs a part of
                   the pool, drawn evenly over its lengths
  torch_good       PyTorch as a careful engineer would write it, on the batches of `alone`
  evaluation       not among those that run unasked: a test user's item ranked, all users

Every round runs each once, after one that compiles and does not count. --isolate gives every
contestant a process of its own, one after the other; llama3_8b, which fills a GPU, always does.
Prints a table and writes OUTPUT/recommender_step.json. Without --data users are invented; the
feature tables are random but for beauty's.
"""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import timing
import users
from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.config.schema import default_config, flatten
from mmesid_jax.data.dataset import popularity
from mmesid_jax.data.features import read_features
from mmesid_jax.data.whitening import fit_whitening, whiten
from mmesid_jax.errors import UserError

OURS = ("packed", "alone", "packed_backbone", "alone_backbone")
NAMES = (*OURS, "torch_released", "torch_good")
EVALUATION = "evaluation"
BEAUTY_TARGETS = 150_041  # of an epoch


@dataclasses.dataclass(frozen=True)
class Size:
  """users, items: of invented data. batches: packed ones in the pool; released: how many of its
  targets torch_released runs. widths: of the feature tables. config: of config.recommender, what
  differs from the defaults, which are those of configs/beauty.py."""

  users: int
  items: int
  batches: int
  released: int
  widths: Mapping[str, int]
  config: Mapping[str, Any]


TOY = {
  **{"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_width": 32, "mlp_width": 64},
  **{"rows": 8, "row_length": 16, "targets": 64, "whiten": 0},
}
LLAMA3_8B = {
  **{"width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "head_width": 128},
  **{"mlp_width": 14_336, "rows": 8, "row_length": 512, "targets": 768, "whiten": 0},
}
WIDE = {"collaborative": 64, "text": 1280, "visual": 1280}
SIZES = {
  "toy": Size(40, 60, 2, 16, {"collaborative": 6, "text": 10, "visual": 7}, TOY),
  "beauty": Size(22_332, 12_086, 8, 512, {"collaborative": 64, "text": 384}, {}),
  "llama3_8b": Size(22_332, 12_086, 4, 64, WIDE, LLAMA3_8B),
}
VARIANTS = {
  "best": {"encoder": "tied", "prompt.length": 1, "prompt.response": 0},
  "paper_prompt": {"encoder": "mlp", "prompt.length": 34, "prompt.response": 5},
}
LORA = {
  **{"backbone.kind": "lora", "backbone.compute": "bfloat16", "backbone.remat": "layers"},
  **{"dropout": 0.0, "item_dropout": 0.0, "optimizer.learning_rate": 3e-4},
}

SIZE = flags.DEFINE_enum("size", None, list(SIZES), "Of model, batch and invented data.")
VARIANT = flags.DEFINE_enum("variant", "best", list(VARIANTS), "Prompt and item encoder.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
DATA = flags.DEFINE_string("data", None, "A data set's folder.")
CONTESTANTS = flags.DEFINE_list("contestants", list(NAMES), "Which ones run.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that count.", lower_bound=1)
SET = flags.DEFINE_multi_string("set", [], "key=value of config.recommender: backbone.weights=nf4")
MICRO = flags.DEFINE_integer("micro_batch", 0, "Most samples in one of torch_good's; 0 = all.")
ISOLATE = flags.DEFINE_boolean("isolate", False, "A process for every contestant.")
flags.mark_flags_as_required(["size", "output"])


def main(argv: list[str]) -> None:
  del argv
  size, variant, names = SIZE.value, VARIANT.value, CONTESTANTS.value
  if unknown := sorted(set(names) - {*NAMES, EVALUATION}):
    known = ", ".join((*NAMES, EVALUATION))
    raise UserError(f"--contestants: no {unknown[0]!r}; expected some of {known}")
  if size == "llama3_8b" and variant != "paper_prompt":
    raise UserError("--size=llama3_8b: takes --variant=paper_prompt only")
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch
  output, figures = pathlib.Path(OUTPUT.value), {"contestants": {}}
  given = (size, variant, DATA.value, SET.value, MICRO.value, ROUNDS.value)
  for part in measured(names, given, isolate=ISOLATE.value or size == "llama3_8b"):
    figures = part | {"contestants": figures["contestants"] | part["contestants"]}
    timing.write(output / "recommender_step.json", figures)
  rates = {name: c["rates"] for name, c in figures["contestants"].items()}
  print(timing.table(rates, "targets", names[0]))
  for name, c in figures["contestants"].items():
    print(describe(name, c))


def measured(names: Sequence[str], given: tuple, *, isolate: bool) -> Iterator[dict[str, Any]]:
  """Figures of all contestants, or of one after the other, each from a fresh process."""
  if not isolate:
    yield measure(names, *given)
    return
  fresh = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
  with concurrent.futures.ProcessPoolExecutor(1, **fresh) as pool:
    for name in names:
      yield pool.submit(measure, [name], *given).result()


def measure(
  names: Sequence[str],
  size: str,
  variant: str,
  data: str | None,
  changes: Sequence[str],
  micro_batch: int,
  rounds: int,
) -> dict[str, Any]:
  """Rates of the contestants, and what follows from them."""
  import jax
  from flax import nnx
  from step_contestants import contestant, peak_memory

  from mmesid_jax.models import flops
  from mmesid_jax.parallel.devices import peak_flops
  from mmesid_jax.stages import recommender_stage as stage

  inputs = draw(size, variant, data, changes)
  contestants = {name: contestant(name, inputs, micro_batch) for name in names}
  rates = timing.alternate({name: c.run for name, c in contestants.items()}, rounds)
  shapes = nnx.eval_shape(lambda: stage.init_recommender(inputs.config, 0, **inputs.tables))
  most = peak_flops(jax.devices()[0].device_kind)
  figures = {}
  for name, c in contestants.items():
    rate = statistics.median(rates[name])
    operations = sum(flops.recommender_flops(shapes, work) for work in c.work) * rate / c.targets
    figures[name] = {
      "rates": rates[name],
      "targets_per_second": rate,
      "targets": c.targets,
      "steps": len(c.work),
      "tokens_a_target": sum(work.prompt + work.tokens for work in c.work) / c.targets,
      "trained": c.trained,
      "tflops_per_second": operations / 1e12,
      "mfu": operations / most if most else None,
      "peak_gib": peak_memory(name) if len(names) == 1 else None,
      "beauty_epoch_seconds": BEAUTY_TARGETS / rate,
    }
  return {
    "environment": timing.environment(),
    "size": size,
    "variant": variant,
    "data": data and pathlib.Path(data).name,
    "backbone": inputs.config.backbone.to_dict(),
    "contestants": figures,
  }


def draw(size: str, variant: str, data: str | None, changes: Sequence[str] = ()):
  """step_contestants.Inputs, the same for the same arguments in whatever process. changes:
  key=value of config.recommender. Raises UserError for a key that is not there."""
  from step_contestants import Inputs

  from mmesid_jax.data.batches import PackedBatches
  from mmesid_jax.data.history_pieces import training_pieces
  from mmesid_jax.data.row_layout import with_capacity
  from mmesid_jax.stages.recommender_stage import batch_layout

  rng, s, config = np.random.default_rng(0), SIZES[size], default_config()
  config.recommender.fusion = "frequency"  # as the contestants have it
  c, ids = config.recommender, config.semantic_ids.quantizer
  lora = LORA if size == "llama3_8b" or (size, variant) == ("toy", "paper_prompt") else {}
  c.update_from_flattened_dict({**s.config, **VARIANTS[variant], **lora})
  for key, _, value in (change.partition("=") for change in changes):
    if key not in (known := flatten(c)):
      raise UserError(
        f"--set={key}: no such key; did you mean {command_line.nearest_name(key, [*known])}?"
      )
    c.update_from_flattened_dict({key: type(known[key])(value)})
  dataset = users.read(data, users=s.users, items=s.items)
  I = dataset.num_items  # noqa: E741

  def feature(modality: str, V: int) -> np.ndarray:
    if data and size == "beauty":
      x_IV = read_features(pathlib.Path(data) / f"{modality}.npy", I)
    else:
      x_IV = rng.standard_normal((I + 1, V), np.float32)
    width = min(c.whiten, x_IV.shape[1])
    return whiten(x_IV, fit_whitening(x_IV, width, c.whiten_std)) if c.whiten else x_IV

  code, book = (I + 1, ids.levels), (ids.levels, ids.codes, c.width)
  tables = {
    "features": {m: feature(m, V) for m, V in s.widths.items()},
    "codes": {m: rng.integers(ids.codes, size=code, dtype=np.int32) for m in s.widths},
    "codebooks": {m: 0.02 * rng.standard_normal(book, np.float32) for m in s.widths},
    "counts_I": popularity(dataset),
  }
  pieces, _ = training_pieces(dataset, batch_layout(c))
  source = PackedBatches(dataset, pieces, with_capacity(batch_layout(c), pieces), seed=0)
  batches = list(itertools.islice(source, s.batches))
  samples = []
  for piece in np.unique(np.concatenate([b.piece_Q[b.weight_Q > 0] for b in batches])):
    user, start, stop, first = (int(column[piece]) for column in pieces)
    items = dataset.sequence(user)
    samples += [(items[start:t], int(items[t])) for t in range(first, stop)]
  return Inputs(c, tables, dataset, batches, samples, s.released)


def describe(name: str, c: Mapping[str, Any]) -> str:
  """What a contestant did and takes, in one line."""
  line = (
    f"{name}: {c['targets']:,} targets in {c['steps']} steps a round, "
    f"{c['tokens_a_target']:.1f} tokens a target, {c['trained'] / 1e6:,.2f} M trained; "
    f"{c['tflops_per_second']:.3g} TFLOP/s"
  )
  line += f", MFU {c['mfu']:.1%}" if c["mfu"] else ""
  line += f", {c['peak_gib']:.1f} GiB at most" if c["peak_gib"] else ""
  return f"{line}, an epoch of Beauty in {c['beauty_epoch_seconds']:,.0f} s"


if __name__ == "__main__":
  command_line.run_command(main)
