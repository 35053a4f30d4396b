"""Ranks the held-out items by popularity, SASRec and the recommender; a table and
evaluation.json."""

import json
import pathlib
from typing import Any

from mmesid_jax.artifacts import write_text
from mmesid_jax.config import flatten
from mmesid_jax.data.dataset import popularity
from mmesid_jax.data.packing import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import Evaluator, judge
from mmesid_jax.stages import collaborative, recommender
from mmesid_jax.stages.next_item import evaluation_layout
from mmesid_jax.stages.workdir import Workdir


def evaluate(workdir: Workdir, split: str) -> dict[str, Any]:
  """Every model whose artifact is there, both protocols, means and 95 % bootstrap intervals over
  users.

  Writes evaluation.json (test) or evaluation_valid.json. Raises UserError when no user has a
  target.
  """
  config, dataset = workdir.config, workdir.dataset

  def evaluator(layout: Layout) -> Evaluator:
    return Evaluator(dataset, evaluation_layout(layout, config.evaluation.targets), split)

  c = config.collaborative
  sasrec = evaluator(Layout(c.rows, c.row_length, c.targets))
  if not len(sasrec):
    raise UserError(f"{workdir.data_dir}: no user has the 3 items that a {split} target needs")
  ranks = {"popularity": sasrec.fixed_ranks(popularity(dataset).astype("float32"))}
  if workdir.artifact("collaborative").exists():
    ranks["SASRec"] = sasrec.model_ranks(collaborative.restore(workdir))
  if workdir.artifact("recommender").exists():
    model = recommender.restore(workdir.path, config)
    ranks["MME-SID"] = evaluator(recommender.layout(config.recommender)).model_ranks(model)
  options = {"resamples": config.evaluation.resamples, "seed": config.seed}
  result = {
    "split": split,
    "users": len(sasrec),
    "dataset": dataset.fingerprint,
    "seed": config.seed,
    "models": {m: judge(r, config.evaluation.cutoffs, **options) for m, r in ranks.items()},
    "config": flatten(config),
  }
  write_text(workdir.path / file_name(split), json.dumps(result, indent=1) + "\n")
  return result


def file_name(split: str) -> pathlib.Path:
  return pathlib.Path("evaluation.json" if split == "test" else f"evaluation_{split}.json")
