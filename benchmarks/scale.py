"""The quantiser on a large catalogue: python benchmarks/scale.py --output=runs/scale

Writes a float16 feature table to disk (low rank with noise, in chunks; --items rows, --width wide),
and with tables kept there: starts codebooks from k-means, trains --steps steps, exports the codes.
Prints items a second of each and the most memory of the host beside the table's size, and writes
OUTPUT/scale.json. Pages of the memory-mapped table do not count: the system may drop them.
"""

import json
import pathlib
import time

import numpy as np
import timing
from absl import flags
from host_memory import host_peak

from mmesid_jax.config import command_line

OUTPUT = flags.DEFINE_string("output", None, "A folder for the table and the figures.")
ITEMS = flags.DEFINE_integer("items", 100_000, "Of the catalogue.", lower_bound=2)
WIDTH = flags.DEFINE_integer("width", 1280, "Of a feature row.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 50, "Of training.", lower_bound=1)
CODE_WIDTH = flags.DEFINE_integer("code_width", 128, "Of codes.", lower_bound=1)
CODES = flags.DEFINE_integer("codes", 256, "A level.", lower_bound=2)
flags.mark_flag_as_required("output")

RANK, CHUNK = 32, 16_384  # of the table; rows made at once


def main(argv: list[str]) -> None:
  del argv
  output = pathlib.Path(OUTPUT.value)
  path = write_table(output / "features.npy", ITEMS.value, WIDTH.value)
  parts = measure(path)
  size = path.stat().st_size / 2**30
  print(f"{ITEMS.value:,} items x {WIDTH.value}, float16: {size:.3f} GiB on disk\n")
  print(f"{'':14} seconds  items a second  peak GiB of the host")
  for name, part in parts.items():
    rate = part["items"] / part["seconds"]
    print(f"{name:14} {part['seconds']:7.1f} {rate:15,.0f} {part['peak_gib']:21.3f}")
  figures = {
    "environment": timing.environment(),
    "items": ITEMS.value,
    "width": WIDTH.value,
    "code_width": CODE_WIDTH.value,
    "codes": CODES.value,
    "table_gib": size,
    "parts": parts,
  }
  timing.write(output / "scale.json", figures)


def write_table(path: pathlib.Path, items: int, width: int) -> pathlib.Path:
  """[items + 1, width], unless a whole one is there."""
  shape = (items + 1, width)
  made_from = json.dumps({"shape": shape, "rank": RANK})
  mark = path.with_suffix(".json")
  if path.is_file() and mark.is_file() and mark.read_text() == made_from:
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  mark.unlink(missing_ok=True)
  table = np.lib.format.open_memmap(path, "w+", np.float16, shape)
  rng = np.random.default_rng(0)
  directions_RV = rng.standard_normal((RANK, width), np.float32) / RANK**0.5
  for start in range(1, len(table), CHUNK):
    rows = len(table[start : start + CHUNK])
    low_rank = rng.standard_normal((rows, RANK), np.float32) @ directions_RV
    noise = 0.3 * rng.standard_normal((rows, width), np.float32)
    table[start : start + rows] = low_rank + noise
  table.flush()
  mark.write_text(made_from)
  return path


def measure(path: pathlib.Path) -> dict[str, dict[str, float]]:
  """Part -> seconds, items that it went through, most memory above that of before it."""
  import jax
  from flax import nnx

  from mmesid_jax.config.schema import default_config
  from mmesid_jax.data.batches import item_batches
  from mmesid_jax.data.features import open_features
  from mmesid_jax.stages import item_batches as tables
  from mmesid_jax.stages import semantic_id_stage
  from mmesid_jax.training.step import initial_state, make_step

  tables.DEVICE_TABLE_BYTES = 0  # at any size
  c = default_config().semantic_ids
  c.quantizer.codes = CODES.value
  parts, found = {}, {}

  def timed(name, items, work):
    start = time.perf_counter()
    with host_peak() as taken:
      work()
    seconds = time.perf_counter() - start
    parts[name] = {"items": items, "seconds": seconds, "peak_gib": taken["bytes"] / 2**30}

  def check():
    found["features"] = {"text": open_features(path, ITEMS.value)}

  def start():
    found["tables"] = semantic_id_stage.init_tables(
      c, found["features"], code_width=CODE_WIDTH.value, seed=0
    )

  def take(steps):
    for _ in range(steps):
      batch = tables.make_item_batch(found["features"], next(found["batches"]))
      found["state"], metrics = found["step"](found["state"], found["frozen"], batch)
    if not np.isfinite(float(metrics["loss"])):  # waits
      raise FloatingPointError("the loss is not finite")

  def export():
    held = nnx.merge(found["graph"], found["state"]["params"], found["frozen"])
    codes = semantic_id_stage.encode_catalogue(held, found["features"])
    np.save(path.with_name("codes.npy"), codes["text"])

  timed("check", ITEMS.value, check)
  timed("k-means start", ITEMS.value, start)
  found["graph"], params, found["frozen"] = nnx.split(found["tables"], nnx.Param, ...)
  learner = semantic_id_stage.mm_rqvae_optimizer(c, STEPS.value)
  batch = min(c.batch, ITEMS.value)
  found["state"] = initial_state(params, learner)
  found["step"] = make_step(semantic_id_stage.mm_rqvae_loss(c), learner, found["graph"], seed=0)
  found["batches"] = iter(item_batches(ITEMS.value, batch, seed=0))
  take(1)  # compiles
  jax.block_until_ready(found["state"])
  timed("train", STEPS.value * batch, lambda: take(STEPS.value))
  timed("export", ITEMS.value, export)
  return parts


if __name__ == "__main__":
  command_line.run_command(main)
