"""Ranks the held-out items by popularity, SASRec and the recommender; a table, evaluation.json, and
every user's rank."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmesid_jax.config.schema import flatten
from mmesid_jax.data.dataset import popularity
from mmesid_jax.data.packing import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import Evaluator, SequenceModel, judge
from mmesid_jax.evaluation.ranking import PROTOCOLS
from mmesid_jax.files.artifact import write_bytes, write_text
from mmesid_jax.stages import collaborative_stage, recommender_stage
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.workdir import Workdir

MODELS = {"collaborative": "SASRec", "recommender": "MME-SID"}  # the stages that make one

Ranks = Mapping[str, np.ndarray]  # protocol -> int32 [U]


def evaluate(workdir: Workdir, split: str) -> dict[str, Any]:
  """Every model whose artifact is there, both protocols, means and 95 % bootstrap intervals over
  users.

  Writes evaluation.json (test) or evaluation_valid.json, and every user's rank. Raises UserError
  when no user has a target.
  """
  config, dataset = workdir.config, workdir.dataset
  sasrec = evaluator(workdir, "collaborative", split)
  if not len(sasrec):
    raise UserError(
      f"{workdir.data_dir}: no user has a {split} target; the {dataset.split.name} split takes "
      f"them of {dataset.split.evaluates}"
    )
  ranks = {"popularity": sasrec.fixed_ranks(popularity(dataset).astype("float32"))}
  for stage, name in MODELS.items():
    if workdir.artifact(stage).exists():
      judges = sasrec if stage == "collaborative" else evaluator(workdir, stage, split)
      ranks[name] = judges.model_ranks(trained(workdir, stage))
  options = {"resamples": config.evaluation.resamples, "seed": config.seed}
  result = {
    "split": split,
    "users": len(sasrec),
    "left_out": dataset.split.left_out[split],
    "dataset": dataset.fingerprint,
    "seed": config.seed,
    "models": {m: judge(r, config.evaluation.cutoffs, **options) for m, r in ranks.items()},
    "config": flatten(config),
  }
  for name, found in ranks.items():
    write_ranks(workdir.path, split, name, found)
  write_text(workdir.path / file_name(split), json.dumps(result, indent=1) + "\n")
  return result


def evaluator(workdir: Workdir, stage: str, split: str) -> Evaluator:
  """With the rows of the stage's training."""
  c = workdir.config[stage]
  plain = stage == "collaborative"
  layout = Layout(c.rows, c.row_length, c.targets) if plain else recommender_stage.layout(c)
  layout = evaluation_layout(layout, workdir.config.evaluation.targets)
  return Evaluator(workdir.dataset, layout, split)


def trained(workdir: Workdir, stage: str) -> SequenceModel:
  """The stage's model, from its artifact."""
  if stage == "collaborative":
    return collaborative_stage.restore(workdir)
  return recommender_stage.restore(workdir.path, workdir.config)


def summed_ranks(parts: Sequence[tuple[Workdir, str]], split: str) -> Ranks:
  """Of the sum of the scores of several (workdir, stage), all of one data set."""
  judges = [evaluator(workdir, stage, split) for workdir, stage in parts]
  models = (trained(workdir, stage) for workdir, stage in parts)
  return judges[0].summed_ranks([j.states(m) for j, m in zip(judges, models, strict=True)])


def file_name(split: str) -> pathlib.Path:
  return pathlib.Path("evaluation.json" if split == "test" else f"evaluation_{split}.json")


def write_ranks(path: pathlib.Path, split: str, model: str, ranks: Ranks) -> None:
  """path/ranks/<split>-<model>.npy: int32 [2, U], masked before unmasked, users in the data set's
  order."""
  written = io.BytesIO()
  np.save(written, np.stack([ranks[p] for p in PROTOCOLS]), allow_pickle=False)
  write_bytes(_ranks_file(path, split, model), written.getvalue())


def read_ranks(path: pathlib.Path, split: str, model: str) -> Ranks:
  """What `write_ranks` wrote. Raises UserError where there is none, or a damaged one."""
  file = _ranks_file(path, split, model)
  try:
    return dict(zip(PROTOCOLS, np.load(file, allow_pickle=False), strict=True))
  except (OSError, ValueError, EOFError) as error:
    raise UserError(
      f"{file}: no whole table of ranks ({error}); mmesid_jax.evaluate writes it again"
    ) from error


def _ranks_file(path: pathlib.Path, split: str, model: str) -> pathlib.Path:
  return path / "ranks" / f"{split}-{model}.npy"
