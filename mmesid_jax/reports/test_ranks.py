"""Evaluates popularity and the models of all stages: metrics, and the rank of every target."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmesid_jax.config.schema import flatten
from mmesid_jax.data.dataset import popularity
from mmesid_jax.data.repeats import count_repeats
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import NEVER, Evaluator, summarize_ranking
from mmesid_jax.evaluation.ranking import PROTOCOLS
from mmesid_jax.files.artifact import write_text
from mmesid_jax.files.feature_table import write_array
from mmesid_jax.files.readers import read_npy
from mmesid_jax.parallel.processes import main_only
from mmesid_jax.stages.registry import MODELS
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import Workdir

Ranks = Mapping[str, np.ndarray]  # protocol -> int32 [U]
REFITTED = ", refitted"  # after the name of a model


def evaluate_models(workdir: Workdir, split: str) -> dict[str, Any]:
  """Evaluates every model whose artifact exists, and popularity, with both protocols.

  Writes evaluation.json (test) or evaluation_valid.json: means and 95 % bootstrap intervals over
  users, and the number of targets that repeat; and the rank of every user's target. Returns the
  content of the JSON file. Names of a refit's models end in REFITTED. Raises UserError when no user
  has a target, and for a model that gives no item a score.
  """
  config, dataset = workdir.config, workdir.dataset
  cutoffs = config.evaluation.cutoffs
  workdir.check_targets(split)
  first, *_ = MODELS
  made = {name: stage for name, stage in MODELS.items() if workdir.artifact(name).exists()}
  for name in [name for name, stage in made.items() if not stage.fits(workdir)]:
    reporter.warn(f"{name}: left out, it was made for another recommender; train it again")
    del made[name]
  evaluators = {
    name: make_evaluator(workdir, stage, split)
    for name, stage in ({first: MODELS[first]} | made).items()
  }
  counts_I = popularity(dataset).astype("float32")
  rankings = {"popularity": evaluators[first].fixed_ranking(counts_I, max(cutoffs))}
  for name, stage in made.items():
    model = stage.load_model(workdir)
    for row, of_row in {stage.model_name: model, **stage.further_models(workdir, model)}.items():
      rankings[row] = evaluators[name].model_ranking(of_row, max(cutoffs))
      if all((place_E == NEVER).all() for place_E in rankings[row].place_E.values()):
        raise UserError(
          f"{workdir.artifact(name)}: the model's scores are not numbers: it has diverged, or they "
          "grow too large on this device; nothing is evaluated"
        )
  if workdir.is_refit:
    rankings = {name + REFITTED: ranking for name, ranking in rankings.items()}
  options = {"resamples": config.evaluation.resamples, "seed": config.seed}
  result = {
    "split": split,
    "users": len(evaluators[first]),
    "left_out": dataset.split.left_out[split],
    "repeated": count_repeats(dataset)[split].repeated,
    "dataset": dataset.fingerprint,
    "seed": config.seed,
    "models": {m: summarize_ranking(r, cutoffs, **options) for m, r in rankings.items()},
    "config": flatten(config),
  }
  for name, ranking in rankings.items():
    write_ranks(workdir.path, split, name, ranking.rank_U)
  write_text(workdir.path / evaluation_file(split), json.dumps(result, indent=1) + "\n")
  return result


def make_evaluator(workdir: Workdir, stage: Stage, split: str) -> Evaluator:
  """An evaluator whose rows are as long as those the stage trains with."""
  layout = evaluation_layout(stage.layout(workdir.config), workdir.config.evaluation.targets)
  return Evaluator(workdir.dataset, layout, split, narrow=stage.narrow_histories)


def summed_ranks(parts: Sequence[tuple[Workdir, str]], split: str) -> Ranks:
  """Ranks by the summed scores of several (workdir, stage's name), all of one data set."""
  models = [(workdir, MODELS[name]) for workdir, name in parts]
  evaluators = [make_evaluator(workdir, stage, split) for workdir, stage in models]
  return evaluators[0].summed_ranks(
    [
      evaluator.states(stage.load_model(workdir))
      for evaluator, (workdir, stage) in zip(evaluators, models, strict=True)
    ]
  )


def evaluation_file(split: str) -> pathlib.Path:
  """Name of the file with the metrics, in a workdir."""
  return pathlib.Path("evaluation.json" if split == "test" else f"evaluation_{split}.json")


@main_only
def write_ranks(path: pathlib.Path, split: str, model: str, ranks: Ranks) -> None:
  """Writes path/ranks/<split>-<model>.npy: int32 [2, U], masked before unmasked; users in the data
  set's order."""
  write_array(_ranks_file(path, split, model), np.stack([ranks[p] for p in PROTOCOLS]))


def read_ranks(path: pathlib.Path, split: str, model: str) -> Ranks:
  """The ranks that `write_ranks` wrote. Raises UserError for a missing or damaged file."""
  file = _ranks_file(path, split, model)
  try:
    ranks = read_npy(file)
    if ranks.dtype.kind not in "iu" or ranks.ndim != 2 or len(ranks) != len(PROTOCOLS):
      raise UserError(f"{file}: {ranks.dtype} of shape {list(ranks.shape)}")
  except UserError as error:
    raise UserError(f"{error}: no whole table of ranks; mmesid_jax.evaluate writes it") from None
  return dict(zip(PROTOCOLS, np.array(ranks), strict=True))


def _ranks_file(path: pathlib.Path, split: str, model: str) -> pathlib.Path:
  return path / "ranks" / f"{split}-{model}.npy"
