"""How cost grows: python benchmarks/growth.py --output=runs/growth

  items    10^4 to 10^7 of them: time and memory of scores, softmax loss and gradient of queries and
           item table, 256 targets, width 64: full softmax; in chunks of 4,096 items; against 1,024
           uniform negatives. The gradient of the table has a number for every item, sampled or not,
           so beyond some 10^5 items it is most of what the sampled loss costs.
  history  of 10 to 1,000 items: the gradient of one user's training loss, every item a target, in
           one shared-prefix row, and with one sample per target (samples of similar length share a
           batch). Width 64, 2 layers, 1,000 items, a prompt of one vector.
  width    64 to 1,024: the gradient of the packed recommender's loss; 2 layers, 8 rows of 128.
  ids      10^4 to 10^7 items with IDs of 4 random codes of 256: building their trie, and one user's
           search in it; its memory is that of the trie, the search's that of the compiled function.

Memory is XLA's own account of the compiled function: arguments, outputs and temporaries. What takes
more than --limit_gib (0: what the accelerator has; 8 on a CPU) is compiled and not run. On
accelerators the backbone computes in bfloat16. Prints tables, writes OUTPUT/growth.json and a
picture of every series. Seconds are medians; the variants of a point take turns; exponents are
those of the seconds, fitted to the last three points.
"""

import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timing
from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

OUTPUT = flags.DEFINE_string("output", None, "A folder for figures and pictures.")
ONLY = flags.DEFINE_list("only", ["items", "history", "width", "ids"], "Series that are measured.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds, after one that compiles.", lower_bound=1)
ITEMS = flags.DEFINE_integer("most_items", 10_000_000, "Largest catalogue.", lower_bound=1)
HISTORY = flags.DEFINE_integer("most_history", 1000, "Longest history.", lower_bound=1)
WIDTH = flags.DEFINE_integer("most_width", 1024, "Widest model.", lower_bound=1)
LIMIT = flags.DEFINE_float("limit_gib", 0.0, "Most memory of what is run.")
flags.mark_flags_as_required(["output"])

TARGETS, NEGATIVES, CHUNK, D = 256, 1024, 4096, 64
CATALOGUE, FEATURE = 1000, 16  # of the recommenders: items, and width of the feature table
LAYERS, HEAD = 2, 32
ALONE_TOKENS = 2**14  # of a batch of one sample per target, padding included
LEAST = 0.02  # seconds that a contestant works a round, repeating what takes less
HALF = 10**0.5

Series = dict[str, list[dict[str, Any]]]  # variant -> points


def main(argv: list[str]) -> None:
  del argv
  measured = {
    **{"items": items_series, "history": history_series, "width": width_series},
    "ids": ids_series,
  }
  if unknown := set(ONLY.value) - set(measured):
    raise UserError(f"--only: no {unknown.pop()}; expected some of {', '.join(measured)}")
  output = pathlib.Path(OUTPUT.value)
  figures: dict[str, Any] = {}
  for name in ONLY.value:
    figures[name] = measured[name]()
    print(f"\n{table(name, figures[name])}")
    timing.write(output / "growth.json", {"environment": timing.environment(), **figures})
    draw(name, figures[name], output / f"growth_{name}.svg")


def timed(steps: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
  """Median seconds of every step; they take turns."""
  import jax

  def work(step):
    start, times = time.perf_counter(), 0
    while not times or time.perf_counter() - start < LEAST:
      jax.block_until_ready(step())
      times += 1
    return times

  rates = timing.alternate({name: lambda s=s: work(s) for name, s in steps.items()}, ROUNDS.value)
  return {name: 1 / statistics.median(r) for name, r in rates.items()}


def points(first: float, most: int, factor: float) -> list[int]:
  """first, first x factor, ..., rounded, up to `most`; `most` alone where that is less."""
  count = 1 + max(0, math.floor(math.log(most / first, factor) + 0.01))
  return [min(round(first * factor**i), most) for i in range(count)]


def limit() -> float:
  """Bytes that a compiled function may take."""
  import jax

  stats = jax.local_devices()[0].memory_stats() or {}
  return LIMIT.value * 2**30 or stats.get("bytes_limit", 8 * 2**30)


def items_series() -> Series:
  import jax
  import jax.numpy as jnp

  from mmesid_jax.losses import next_item
  from mmesid_jax.models.catalogue_scores import Scorer

  def full(scorer, target_Q, weight_Q, negative_N):
    return next_item.cross_entropy(scorer.score_all(), target_Q, weight_Q)

  def chunked(scorer, target_Q, weight_Q, negative_N):
    return next_item.chunked_cross_entropy(scorer, target_Q, weight_Q, CHUNK)

  def sampled(scorer, target_Q, weight_Q, negative_N):
    log_expected_N = jnp.full(NEGATIVES, math.log(NEGATIVES / (scorer.num_rows - 1)))
    return next_item.sampled_cross_entropy(scorer, target_Q, weight_Q, negative_N, log_expected_N)

  def gradient(loss):
    def of(query_QD, table_ID, *rest):
      return loss(Scorer((query_QD,), (table_ID,)), *rest)[0]

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1)))

  @jax.jit(static_argnums=0)
  def draw_arguments(items):
    query_key, target_key, negative_key = jax.random.split(jax.random.key(0), 3)
    number_ID = jnp.arange((items + 1) * D, dtype=jnp.float32).reshape(-1, D)
    return (
      jax.random.normal(query_key, (TARGETS, D)),
      0.02 * jnp.sin(number_ID),  # drawing so many would take more memory than what is measured
      jax.random.randint(target_key, (TARGETS,), 1, items + 1),
      jnp.ones(TARGETS),
      jax.random.randint(negative_key, (NEGATIVES,), 1, items + 1),
    )

  losses = {"full": full, "chunked": chunked, "sampled": sampled}
  found: Series = {name: [] for name in losses}
  for items in points(1e4, ITEMS.value, 10):
    shapes = jax.eval_shape(lambda items=items: draw_arguments(items))
    compiled = {name: gradient(loss).lower(*shapes).compile() for name, loss in losses.items()}
    held = {name: held_by(step) for name, step in compiled.items()}
    fitting = [name for name in losses if held[name] <= limit()]
    arguments = draw_arguments(items) if fitting else ()
    steps = {name: functools.partial(compiled[name], *arguments) for name in fitting}
    seconds = timed(steps) if steps else {}
    for name in losses:
      found[name].append({"x": items, "seconds": seconds.get(name), "bytes": held[name]})
  return found


def held_by(compiled) -> int:
  """Bytes of arguments, outputs and temporaries by XLA's account."""
  m = compiled.memory_analysis()
  taken = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
  return taken - m.alias_size_in_bytes


def recommender(width: int):
  """A small one: item rows, one feature table, no codes."""
  import jax
  import numpy as np
  from flax import nnx

  from mmesid_jax.models.fusion import FrequencyFusion
  from mmesid_jax.models.item_encoder import ItemEncoder
  from mmesid_jax.models.llama import LlamaConfig
  from mmesid_jax.models.sequence_recommender import RecommenderModel

  rngs, heads = nnx.Rngs(0), width // HEAD
  feature_IV = np.random.default_rng(0).standard_normal((CATALOGUE + 1, FEATURE), np.float32)
  items = ItemEncoder({"text": feature_IV}, {}, {}, D=width, kind="tied", rngs=rngs)
  gates = FrequencyFusion(np.ones(CATALOGUE + 1), 1, kind="sum", temperature=1.0, rngs=rngs)
  compute = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  sizes = {"layers": LAYERS, "D": width, "F": 4 * width, "N": heads, "K": heads, "H": HEAD}
  llama = LlamaConfig(**sizes, compute=compute)
  return RecommenderModel(items, gates, llama, P=1, S=0, item_dropout=0.0, rngs=rngs)


def loss_gradient(model, hidden: Callable):
  """The compiled gradient(batch) of the summed loss, hidden(model, batch) being o [Q, D]."""
  import jax
  from flax import nnx

  from mmesid_jax.losses.next_item import cross_entropy

  graph, params, frozen = nnx.split(model, nnx.Param, ...)

  @jax.jit
  def gradient(params, frozen, batch):
    def loss(params):
      model = nnx.merge(graph, params, frozen)
      scores_QI = model.scores(hidden(model, batch))
      return cross_entropy(scores_QI, batch.target_Q.reshape(-1), batch.weight_Q.reshape(-1))[0]

    return jax.value_and_grad(loss)(params)

  return lambda batch: gradient(params, frozen, batch)


def history_series() -> Series:
  import alone
  import jax
  import jax.numpy as jnp
  import numpy as np

  from mmesid_jax.data.batches import batch_sequences
  from mmesid_jax.data.row_layout import Layout
  from mmesid_jax.models.sequence_recommender import RecommenderModel

  model = recommender(D)
  packed, single = loss_gradient(model, RecommenderModel.hidden), loss_gradient(model, alone.hidden)
  found: Series = {"shared-prefix row": [], "one sample per target": []}
  for length in points(10, HISTORY.value, HALF):
    items = np.random.default_rng(length).integers(1, CATALOGUE + 1, length + 1)
    (row,) = batch_sequences([items], Layout(rows=1, row_length=length, targets=length + 1))
    samples = [(items[:t], int(items[t])) for t in range(length + 1)]
    groups = alone.by_length(samples, 0, max(1, ALONE_TOKENS // (2 * length)))
    batches = jax.device_put(alone.stacked(groups, 0))

    def one_by_one(batches=batches):
      total = single(batches[0])
      for batch in batches[1:]:
        total = jax.tree.map(jnp.add, total, single(batch))
      return total

    losses: dict[str, Any] = {}

    def step(name, gradient, losses=losses):
      losses[name], slope = gradient()
      return slope

    gradients = zip(
      found, (functools.partial(packed, jax.device_put(row)), one_by_one), strict=True
    )
    seconds = timed({name: functools.partial(step, name, g) for name, g in gradients})
    np.testing.assert_allclose(*losses.values(), rtol=1e-2)  # bfloat16 on accelerators
    for name, series in found.items():
      series.append({"x": length, "seconds": seconds[name]})
  return found


def width_series() -> Series:
  import jax
  import numpy as np

  from mmesid_jax.data.packing import Packer
  from mmesid_jax.data.row_layout import Layout
  from mmesid_jax.models.flops import recommender_flops as operations
  from mmesid_jax.models.flops import useful_work
  from mmesid_jax.models.sequence_recommender import RecommenderModel

  rng, rows = np.random.default_rng(0), Layout(rows=8, row_length=128, targets=1024)
  packer, piece = Packer(rows), 0
  while packer.add(piece, rng.integers(1, CATALOGUE + 1, 33), 1):
    piece += 1
  batch = packer.batch()
  found: Series = {"packed": []}
  for width in points(64, WIDTH.value, 2):
    model = recommender(width)
    step, device_batch = loss_gradient(model, RecommenderModel.hidden), jax.device_put(batch)
    (seconds,) = timed({"packed": lambda s=step, b=device_batch: s(b)}).values()
    rate = operations(model, useful_work(batch, 1)) / seconds
    found["packed"].append({"x": width, "seconds": seconds, "flops": rate})
  return found


def ids_series() -> Series:
  import growth_ids

  beams = {f"beam of {number}": number for number in (20, 50)}
  found: Series = {"build": [], **{name: [] for name in beams}}
  for items in points(1e4, ITEMS.value, 10):
    case = growth_ids.make_case(items)
    search = {name: case.search(number) for name, number in beams.items()}
    steps = {name: functools.partial(step, *case.arguments) for name, step in search.items()}
    held = {"build": case.trie.nbytes, **{name: held_by(step) for name, step in search.items()}}
    for name, seconds in timed({"build": case.build, **steps}).items():
      found[name].append({"x": items, "seconds": seconds, "bytes": held[name]})
  return found


def exponent(series: Sequence[Mapping[str, Any]]) -> float | None:
  """Of x in the seconds of the last three points, fitted to their logarithms."""
  import numpy as np

  timed_ = [p for p in series if p["seconds"]][-3:]
  if len(timed_) < 2:
    return None
  x, y = (np.log([p[key] for p in timed_]) for key in ("x", "seconds"))
  return float(np.polyfit(x, y, 1)[0])


def table(name: str, found: Series) -> str:
  """A line a point, columns by variant."""
  columns = {"seconds": ("ms", 1e-3), "bytes": ("GiB", 2**30), "flops": ("TFLOP/s", 1e12)}
  keys = [key for key in columns if key in next(iter(found.values()))[0]]
  head = f"{name:>12}"
  for variant in found:
    head += f"  {variant + ', ' + columns[keys[0]][0]:>25}" + "".join(
      f" {columns[key][0]:>8}" for key in keys[1:]
    )
  lines = [head]
  for i, point in enumerate(next(iter(found.values()))):
    line = f"{point['x']:12,}"
    for series in found.values():
      values = (series[i][key] and number(series[i][key] / columns[key][1]) for key in keys)
      first, *others = (value or "does not fit" for value in values)
      line += f"  {first:>25}" + "".join(f" {value:>8}" for value in others)
    lines.append(line)
  for variant, series in found.items():
    if (power := exponent(series)) is not None:
      lines.append(f"{variant}: seconds grow as {name} ^ {power:.2f}")
  return "\n".join(lines)


def number(x: float) -> str:
  return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


AXES = {  # of a series: what x is; key, unit and label of its panels
  "items": ("items in the catalogue", [("seconds", 1, "seconds"), ("bytes", 2**30, "memory, GiB")]),
  "history": ("items in the history", [("seconds", 1, "seconds of one user's gradient")]),
  "ids": ("items in the catalogue", [("seconds", 1, "seconds"), ("bytes", 2**30, "memory, GiB")]),
  "width": ("width of the model", [("seconds", 1, "seconds"), ("flops", 1e12, "TFLOP/s")]),
}
COLOURS = ("#1b5e9e", "#c4501b", "#3a7d44")
STYLE = {
  **{"svg.fonttype": "none", "svg.hashsalt": "mmesid_jax", "font.size": 9},
  **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True},
  **{"grid.color": "#e4e4e4", "grid.linewidth": 0.6, "legend.frameon": False},
}


def draw(name: str, found: Series, path: pathlib.Path) -> None:
  """A panel for the time, and one for what else is told; both axes logarithmic."""
  import matplotlib

  matplotlib.use("svg")
  from matplotlib import pyplot

  x_label, panels = AXES[name]
  with matplotlib.rc_context(STYLE):
    figure, (axes,) = pyplot.subplots(
      1, len(panels), figsize=(7, 3), squeeze=False, layout="constrained"
    )
    for axis, (key, unit, y_label) in zip(axes, panels, strict=True):
      panel(axis, name, found, key, unit)
      axis.set(xlabel=x_label, ylabel=y_label)
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


def panel(axis, name: str, found: Series, key: str, unit: float) -> None:
  from matplotlib import ticker

  values, too_large = [], False
  for (variant, series), colour in zip(found.items(), COLOURS, strict=False):
    shown = [p for p in series if p[key]]
    x, y = [p["x"] for p in shown], [p[key] / unit for p in shown]
    fill = [colour if p["seconds"] else "white" for p in shown]
    power = exponent(series)
    label = variant if power is None else f"{variant}: {name}^{power:.1f}"
    axis.plot(x, y, color=colour, linewidth=1.6, label=label if key == "seconds" else None)
    axis.scatter(x, y, color=fill, edgecolors=colour, s=18, zorder=3)
    values, too_large = values + y, too_large or "white" in fill
  if too_large:
    axis.scatter([], [], color="white", edgecolors="#555555", s=18, label="too large to run")
  if not values:  # nothing was run, and a logarithmic axis wants numbers
    return
  axis.set(xscale="log", yscale="log")
  ticks = [p["x"] for p in next(iter(found.values()))]
  axis.set_xticks(ticks, [power_of_ten(x) if name in ("items", "ids") else f"{x:,}" for x in ticks])
  subs = (1,) if max(values) > 100 * min(values) else (1, 2, 5)
  axis.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
  axis.yaxis.set_major_formatter("{x:g}")
  axis.minorticks_off()


def power_of_ten(x: int) -> str:
  """10 to the power it is, or the number."""
  zeros = len(str(x)) - 1
  superscript = str(zeros).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
  return f"10{superscript}" if x == 10**zeros else f"{x:,}"


if __name__ == "__main__":
  command_line.run_command(main)
