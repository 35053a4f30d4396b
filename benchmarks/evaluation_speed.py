"""Speed of the evaluation over the whole catalogue, ours and one user at a time:

  python benchmarks/evaluation_speed.py --size=beauty --output=runs/evaluation_speed --data=DIR

Ranks of the test items under a recommender of configs/beauty.py's sizes with random weights:

  batched         ours: many users a batch, as mmesid_jax.evaluate has it; always runs
  alone           the same model, one user at a time
  torch_released  PyTorch, one user at a time as in the released code, which records gradients and
                  projects the catalogue for everyone

The latter two rank a sample of the users, and have to come to the ranks of `batched`. Prints a
table and writes OUTPUT/evaluation_speed.json. Without --data sequences are random; feature tables
always are.
"""

import dataclasses
import importlib.util
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import timing
import users
from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.config.schema import default_config
from mmesid_jax.data.dataset import Dataset, evaluated_users, popularity
from mmesid_jax.data.row_layout import Pieces
from mmesid_jax.errors import UserError

NAMES = ("batched", "alone", "torch_released")
USERS = {"toy": 60, "beauty": users.USERS}
ITEMS = {"toy": 100, "beauty": users.ITEMS}
SAMPLE = {"toy": 16, "beauty": 256}  # users that are ranked one at a time
TIES = 0.005  # of the sample, at most, whose rank may differ: scores that rounding makes equal
TOY = {
  **{"width": 8, "layers": 1, "head_width": 4, "mlp_width": 16, "whiten": 8},
  **{"rows": 4, "row_length": 32},
}

SIZE = flags.DEFINE_enum("size", None, list(USERS), "Of model and invented data.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
DATA = flags.DEFINE_string("data", None, "A data set's folder.")
CONTESTANTS = flags.DEFINE_list("contestants", list(NAMES), "Which run; torch where installed.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that count.", lower_bound=1)
flags.mark_flags_as_required(["size", "output"])

Ranker = Callable[[], Mapping[str, np.ndarray]]  # () -> protocol -> int [users]


def main(argv: list[str]) -> None:
  del argv
  if unknown := sorted(set(CONTESTANTS.value) - set(NAMES)):
    raise UserError(f"--contestants: no {unknown[0]!r}; expected some of {', '.join(NAMES)}")
  with_torch = all(map(importlib.util.find_spec, ("torch", "transformers", "peft")))
  names = [n for n in CONTESTANTS.value if with_torch or not n.startswith("torch")]
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch
  output = pathlib.Path(OUTPUT.value)
  everybody = users.read(DATA.value, users=USERS[SIZE.value], items=ITEMS[SIZE.value])
  dataset = subset(everybody, evaluated_users(everybody))
  sample = min(SAMPLE[SIZE.value], len(dataset))
  chosen = np.sort(np.random.default_rng(0).choice(len(dataset), sample, replace=False))
  rankers = make_rankers(SIZE.value, dataset, chosen, names)
  different = compare(rankers, chosen)
  work = {name: lambda ranker=ranker: len(ranker()["masked"]) for name, ranker in rankers.items()}
  rates = timing.alternate(work, ROUNDS.value)
  print(timing.table(rates, "users", "batched"))
  for name, share in different.items():
    print(f"{name}: {share:.2%} of {sample} users have another rank than in batches")
  figures = {
    "environment": timing.environment(),
    "size": SIZE.value,
    "data": DATA.value and pathlib.Path(DATA.value).name,
    "users": len(dataset),
    "items": dataset.num_items,
    "sample": sample,
    "contestants": {
      name: {
        "rates": r,
        "users_per_second": statistics.median(r),
        "different": different.get(name),
      }
      for name, r in rates.items()
    },
  }
  timing.write(output / "evaluation_speed.json", figures)


def compare(rankers: Mapping[str, Ranker], sample: np.ndarray) -> dict[str, float]:
  """Share of the sample whose rank differs from that in batches, under any protocol. All products
  in float32: coarser ones, as GPUs have by default, rank many items otherwise."""
  import jax

  with jax.default_matmul_precision("highest"):
    ranks = {name: ranker() for name, ranker in rankers.items()}
  expected = ranks.pop("batched")
  different = {
    name: float(np.any([r[p] != expected[p][sample] for p in expected], axis=0).mean())
    for name, r in ranks.items()
  }
  for name, share in different.items():
    assert share <= TIES, f"{name}: {share:.1%} of the ranks differ, more than float ties would"
  return different


def subset(dataset: Dataset, rows: np.ndarray) -> Dataset:
  """Of those rows of users."""
  return dataclasses.replace(
    dataset,
    items=np.concatenate([dataset.sequence(u) for u in rows]),
    offsets=np.cumsum([0, *dataset.lengths[rows]]),
    users=dataset.users[rows],
  )


def make_rankers(
  size: str, dataset: Dataset, sample: np.ndarray, names: list[str]
) -> dict[str, Ranker]:
  """Of all users in batches, and of the sample one at a time."""
  import jax
  from flax import nnx

  from mmesid_jax.evaluation.evaluator import Evaluator
  from mmesid_jax.stages import recommender_stage
  from mmesid_jax.stages.sequence_task import evaluation_layout

  config = default_config()
  c = config.recommender
  if size == "toy":
    c.update(TOY)
  rng = np.random.default_rng(0)
  s, rows = config.semantic_ids.quantizer, dataset.num_items + 1
  modalities = ("collaborative", "text")

  def table(*shape: int) -> np.ndarray:
    return c.whiten_std * rng.standard_normal(shape, np.float32)

  tables = {
    "features": {m: table(rows, c.whiten) for m in modalities},
    "codes": {m: rng.integers(0, s.codes, (rows, s.levels), np.int32) for m in modalities},
    "codebooks": {m: table(s.levels, s.codes, c.width) for m in modalities},
  }
  model = recommender_stage.init_recommender(c, seed=0, **tables, counts_I=popularity(dataset))
  # Drawn as small as they are, the backbone's weights would add next to nothing to the last item.
  projections = nnx.state(model.backbone.blocks, nnx.Param)
  larger = jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, projections)  # others are norms
  nnx.update(model.backbone.blocks, larger)
  few, layout = subset(dataset, sample), recommender_stage.batch_layout(c)
  evaluators = {
    "batched": Evaluator(dataset, evaluation_layout(layout, config.evaluation.targets), "test"),
    "alone": Evaluator(few, dataclasses.replace(layout, rows=1, targets=1), "test"),
  }
  rankers = {
    name: lambda e=evaluator: e.model_ranks(model)
    for name, evaluator in evaluators.items()
    if name in ("batched", *names)
  }
  if "torch_released" in names:
    rankers["torch_released"] = released(c, model, tables, few, evaluators["alone"].pieces)
  return rankers


def released(c, ours, tables: Mapping[str, Any], dataset: Dataset, pieces: Pieces) -> Ranker:
  """One user at a time in PyTorch, on a GPU if there is one."""
  import jax
  import torch
  from torch_recommender import ReleasedStyle, TorchRecommender, copy_parameters

  from mmesid_jax.stages import backbone

  device = "cuda" if jax.default_backend() == "gpu" else "cpu"
  with torch.device(device):
    model = TorchRecommender(
      backbone.llama_config(c),
      **tables,
      frequency_I=np.asarray(ours.gates.frequency_I[...]),
      encoder=c.encoder,
      temperature=c.gate_temperature,
      P=c.prompt.length,
      S=c.prompt.response,
    ).eval()
  copy_parameters(ours, model)
  style = ReleasedStyle(model, learning_rate=1e-3)  # for its way to score; nothing is trained

  def rank(piece: int) -> tuple[int, int]:
    user, start, stop, _ = (int(column[piece]) for column in pieces)
    *history, target = dataset.sequence(user)[:stop].tolist()
    batch = model.samples([np.asarray(history[start:])], [target], left=True)
    score_I = style.scores(model.hidden(batch))[0]  # column i - 1 = item i
    ahead_I = ~(score_I < score_I[target - 1])
    ahead_I[target - 1] = False
    unmasked = 1 + int(ahead_I.sum())
    ahead_I[torch.tensor(history, device=device) - 1] = False
    masked = dataset.num_items if target in history else 1 + int(ahead_I.sum())
    return masked, unmasked

  def ranks() -> dict[str, np.ndarray]:
    masked_U, unmasked_U = np.array([rank(piece) for piece in range(len(pieces))]).T
    return {"masked": masked_U, "unmasked": unmasked_U}

  return ranks


if __name__ == "__main__":
  command_line.run_command(main)
