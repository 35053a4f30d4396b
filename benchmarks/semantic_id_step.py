"""Speed and memory of the semantic-ID step, ours and in PyTorch:

  python benchmarks/semantic_id_step.py --size=beauty --output=runs/semantic_id_step --data=DIR

Training steps of the MM-RQ-VAE of configs/beauty.py, from item ids to updated parameters:

  ours          the compiled step of the stage
  torch_gram    PyTorch, the distances of the MMD by one Gram matrix
  torch_tensor  PyTorch with the (2B, 2B, V) tensors of differences of the released code, at the
                largest batch whose tensors take no more than --budget_gib

Each runs in a process of its own first, for the memory that its steps take; then all take turns.
Prints a table and writes OUTPUT/semantic_id_step.json. Without --data features are random, and the
collaborative ones 128 wide.
"""

import concurrent.futures
import dataclasses
import importlib.util
import multiprocessing
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import timing
from absl import flags
from host_memory import host_peak
from ml_collections import ConfigDict

from mmesid_jax.config import command_line
from mmesid_jax.config.schema import default_config
from mmesid_jax.data.features import read_features
from mmesid_jax.errors import UserError

STEPS = {"ours": 10, "torch_gram": 10, "torch_tensor": 1}  # a round
ITEMS = {"toy": 100, "beauty": 12_086}
WIDTHS = {
  "toy": {"collaborative": 8, "text": 12},
  "beauty": {"collaborative": 128, "text": 384},
}

SIZE = flags.DEFINE_enum("size", None, list(ITEMS), "Of model, batch and invented features.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
DATA = flags.DEFINE_string("data", None, "A folder with text.npy and collaborative.npy.")
CONTESTANTS = flags.DEFINE_list("contestants", list(STEPS), "Which run; torch where installed.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that count.", lower_bound=1)
BUDGET = flags.DEFINE_float("budget_gib", 8.0, "What the tensors of differences may take, GiB.")
flags.mark_flags_as_required(["size", "output"])


def main(argv: list[str]) -> None:
  del argv
  if unknown := sorted(set(CONTESTANTS.value) - set(STEPS)):
    raise UserError(f"--contestants: no {unknown[0]!r}; expected some of {', '.join(STEPS)}")
  with_torch = importlib.util.find_spec("torch")
  names = [n for n in CONTESTANTS.value if with_torch or not n.startswith("torch")]
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch
  given = (SIZE.value, DATA.value, BUDGET.value)
  fresh = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
  with concurrent.futures.ProcessPoolExecutor(1, **fresh) as pool:
    memory = {name: pool.submit(memory_of, name, *given).result() for name in names}
  contestants = {name: contestant(name, *given) for name in names}
  rates = timing.alternate({name: c.work for name, c in contestants.items()}, ROUNDS.value)
  head, *lines = timing.table(rates, "items", names[0]).splitlines()
  print(f"{head}  batch  peak GiB")
  for line, (name, c) in zip(lines, contestants.items(), strict=True):
    print(f"{line} {c.batch:6} {memory[name]:9.2f}")
  figures = {
    "environment": timing.environment(),
    "size": SIZE.value,
    "data": DATA.value and pathlib.Path(DATA.value).name,
    "contestants": {
      name: {
        "rates": rates[name],
        "items_per_second": statistics.median(rates[name]),
        "batch": c.batch,
        "peak_gib": memory[name],
        "first_loss": c.first_loss,
      }
      for name, c in contestants.items()
    },
  }
  timing.write(pathlib.Path(OUTPUT.value) / "semantic_id_step.json", figures)


@dataclasses.dataclass
class Contestant:
  """step(item_B) starts a training step and returns its loss, for which float() waits."""

  batch: int
  steps: int  # a round
  num_items: int
  held: int  # bytes of what is there before the first step
  step: Callable[[Any], Any]
  first_loss: float | None = None

  def work(self) -> float:
    """A round's steps; returns the number of items that they trained on."""
    rng = np.random.default_rng(0)
    for _ in range(self.steps):
      loss = self.step(rng.choice(self.num_items, self.batch, replace=False) + 1)
      if self.first_loss is None:
        self.first_loss = float(loss)
    float(loss)
    return self.steps * self.batch


def contestant(name: str, size: str, data: str | None, budget_gib: float) -> Contestant:
  """By its name, on a GPU if there is one; all start from the same parameters."""
  from mmesid_jax.stages import semantic_id_stage

  config, features = configuration(size), feature_tables(size, data)
  c = config.semantic_ids
  tables = semantic_id_stage.init_tables(c, features, code_width=config.recommender.width, seed=0)
  num_items = len(features["text"]) - 1
  batch = min(c.batch, num_items)
  if name == "torch_tensor":
    batch = largest_batch(batch, [x.shape[1] for x in features.values()], budget_gib * 2**30)
  if name == "ours":
    step, arrays = our_step(c, tables, batch)
  else:
    step, arrays = torch_step(c, tables.model, features, distances=name.removeprefix("torch_"))
  return Contestant(batch, STEPS[name], num_items, sum(x.nbytes for x in arrays), step)


def configuration(size: str) -> ConfigDict:
  """That of configs/beauty.py; codebooks start random and learn by gradient: no shape changes."""
  config = default_config()
  config.semantic_ids.standardize = False  # neither is what PyTorch has
  config.semantic_ids.quantizer.update(start="random", learning="gradient")
  if size == "toy":
    config.recommender.width = 8
    config.semantic_ids.update(hidden=(16,), batch=32)
    config.semantic_ids.quantizer.update(levels=2, codes=8)
  return config


def feature_tables(size: str, data: str | None) -> dict[str, np.ndarray]:
  """modality -> float32 [I + 1, V]."""
  if data is None:
    rng = np.random.default_rng(0)
    shapes = {m: (ITEMS[size] + 1, V) for m, V in WIDTHS[size].items()}
    return {m: rng.standard_normal(shape, np.float32) for m, shape in shapes.items()}
  files = {m: pathlib.Path(data) / f"{m}.npy" for m in WIDTHS[size]}
  for file in files.values():
    if not file.is_file():
      raise UserError(f"{file}: no such file; --data wants text.npy and collaborative.npy")
  rows = len(np.load(files["text"], mmap_mode="r", allow_pickle=False))
  return {m: read_features(file, rows - 1) for m, file in files.items()}


def largest_batch(most: int, widths: list[int], budget: float) -> int:
  """`most` halved until its tensors fit: the gradient needs the differences of every modality, and
  while it is computed three more tensors of the widest."""
  batch = most
  while batch > 2 and 4 * (2 * batch) ** 2 * (sum(widths) + 3 * max(widths)) > budget:
    batch //= 2
  return batch


def our_step(config: ConfigDict, tables, batch: int) -> tuple[Callable, list]:
  """The train step of the stage, compiled, and the arrays that it holds."""
  import jax
  from flax import nnx

  from mmesid_jax.stages.semantic_id_stage import mm_rqvae_loss, mm_rqvae_optimizer
  from mmesid_jax.training.step import initial_state, make_step

  optimizer = mm_rqvae_optimizer(config, steps=1_000_000)
  graph, params, frozen = nnx.split(tables, nnx.Param, ...)
  state = initial_state(params, optimizer)
  arrays = jax.tree.leaves((state, frozen))
  item_B = np.arange(batch, dtype=np.int32)
  step = make_step(mm_rqvae_loss(config), optimizer, graph, seed=0)
  compiled = step.lower(state, frozen, item_B).compile()

  def step(item_B):
    nonlocal state
    state, metrics = compiled(state, frozen, item_B.astype(np.int32))
    return metrics["loss"]

  return step, arrays


def torch_step(
  config: ConfigDict, model, features: Mapping[str, np.ndarray], *, distances: str
) -> tuple[Callable, list]:
  """The same of torch_mm_rqvae.py."""
  import jax
  import torch
  import torch_mm_rqvae

  from mmesid_jax.stages.semantic_id_stage import loss_options

  device = "cuda" if jax.default_backend() == "gpu" else "cpu"
  torch.set_float32_matmul_precision("high")  # of a GPU: ours takes its tensor cores as well
  module = torch_mm_rqvae.MMRQVAE(model).to(device)
  tables = {m: torch.from_numpy(x).to(device) for m, x in features.items()}
  update = torch_mm_rqvae.make_step(
    module,
    tables,
    config.optimizer,
    distances=torch_mm_rqvae.DISTANCES[distances],
    **loss_options(config),
  )
  arrays = [*module.parameters(), *tables.values()]
  return lambda item_B: update(torch.from_numpy(item_B).to(device)), arrays


def memory_of(name: str, *given) -> float:
  """GiB that the contestant holds at most in a round of steps: of the GPU's, or of the host's."""
  from step_contestants import peak_memory

  c = contestant(name, *given)
  with host_peak() as taken:
    c.work()
  return peak_memory(name) or (c.held + taken["bytes"]) / 2**30


if __name__ == "__main__":
  command_line.run_command(main)
