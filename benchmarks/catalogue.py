"""Large catalogues over a mesh: python benchmarks/catalogue.py --output=runs/catalogue

Softmax loss over all items, and its gradient for queries and item table, with the table cut over
eight devices (virtual ones on a CPU, which share its cores): in chunks, and against sampled items
with the log-Q correction. Memory a device is XLA's own account (arguments, outputs, temporaries),
beside the same on one device; seconds are medians. Before anything is timed, 10,000 items over the
mesh must give the loss and the gradient of the whole softmax on one device. Prints a table and
writes OUTPUT/catalogue.json.
"""

import pathlib
import statistics
import time

import timing
from absl import flags

from mmesid_jax.config import command_line

OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
MOST = flags.DEFINE_integer("most_items", 10_000_000, "Largest catalogue.", lower_bound=8)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds, after one that compiles.", lower_bound=1)
flags.mark_flag_as_required("output")

DEVICES, QUERIES, WIDTH, CHUNK, NEGATIVES = 8, 128, 16, 65_536, 4096


def main(argv: list[str]) -> None:
  del argv
  import jax

  jax.config.update("jax_num_cpu_devices", DEVICES)
  from mmesid_jax.parallel.mesh import make_mesh

  mesh, alone = make_mesh(fsdp=DEVICES), make_mesh()
  check(mesh, alone, items=min(10_000, MOST.value))
  sizes = [n for n in (10**5, 10**6, 10**7, 10**8) if n <= MOST.value] or [MOST.value]
  rows = []
  print(f"\n{'items':>11}  {'softmax':8} {'s':>8} {'MiB a device':>13} {'MiB, one device':>16}")
  for items in sizes:
    for kind in ("chunked", "sampled"):
      step, given = prepared(kind, items, mesh)
      with jax.set_mesh(mesh):
        seconds = []
        for _ in range(1 + ROUNDS.value):
          start = time.perf_counter()
          jax.block_until_ready(step(*given))
          seconds.append(time.perf_counter() - start)
      row = {
        "items": items,
        "softmax": kind,
        "seconds": statistics.median(seconds[1:]),
        "bytes_a_device": held(step),
        "bytes_alone": held(prepared(kind, items, alone, shapes_only=True)[0]),
      }
      rows.append(row)
      print(
        f"{items:11,}  {kind:8} {row['seconds']:8.2f} {row['bytes_a_device'] / 2**20:13,.0f} "
        f"{row['bytes_alone'] / 2**20:16,.0f}"
      )
  timing.write(
    pathlib.Path(OUTPUT.value) / "catalogue.json",
    {"environment": timing.environment(), "queries": QUERIES, "width": WIDTH, "rows": rows},
  )


def prepared(kind: str, items: int, mesh, *, shapes_only: bool = False):
  """The compiled loss and gradient on the mesh, and what it is called with (None: shapes only)."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from mmesid_jax.losses.next_item import (
    chunked_cross_entropy,
    cross_entropy,
    sampled_cross_entropy,
  )
  from mmesid_jax.models.catalogue_scores import Scorer
  from mmesid_jax.parallel.sharding import device_put_sharded, named_sharding

  rng = np.random.default_rng(0)
  target_Q = rng.integers(1, items + 1, QUERIES).astype(np.int32)
  negative_N = rng.integers(1, items + 1, NEGATIVES).astype(np.int32)
  weight_Q = np.ones(QUERIES, np.float32)
  log_expected_N = np.full(NEGATIVES, np.log(NEGATIVES / items), np.float32)

  def loss(query_QD, table_ID):
    scorer = Scorer((query_QD,), (table_ID,), num_items=items)
    if kind == "sampled":
      return sampled_cross_entropy(scorer, target_Q, weight_Q, negative_N, log_expected_N)[0]
    if kind == "chunked":
      return chunked_cross_entropy(scorer, target_Q, weight_Q, CHUNK)[0]
    return cross_entropy(scorer.score_all(), target_Q, weight_Q, items)[0]

  rows = items + 1 + -(items + 1) % DEVICES
  with jax.set_mesh(mesh):
    axes = ((None, None), ("items", None))
    places = tuple(named_sharding(a) for a in axes)
    shapes = [
      jax.ShapeDtypeStruct((n, WIDTH), jnp.float32, sharding=place)
      for n, place in zip((QUERIES, rows), places, strict=True)
    ]
    step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, places))
    compiled = step.lower(*shapes).compile()
    if shapes_only:
      return compiled, None
    drawn = (rng.standard_normal(shape.shape, np.float32) for shape in shapes)
    return compiled, [device_put_sharded(x, a) for x, a in zip(drawn, axes, strict=True)]


def held(compiled) -> int:
  """Bytes on a device while it runs."""
  m = compiled.memory_analysis()
  return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes


def check(mesh, alone, *, items: int) -> None:
  """Raises AssertionError where chunks over the mesh are not the whole softmax on one device."""
  import jax
  import numpy as np

  found = []
  for kind, where in (("whole", alone), ("chunked", mesh)):
    step, given = prepared(kind, items, where)
    with jax.set_mesh(where):
      found.append(jax.tree.map(np.asarray, step(*given)))
  for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
  print(f"{items:,} items: chunks over the mesh equal the whole softmax on one device")


if __name__ == "__main__":
  command_line.run_command(main)
