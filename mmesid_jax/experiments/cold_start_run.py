"""The cold-start experiment: holds items out, trains without them, adds them and ranks them."""

import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmesid_jax import pipeline
from mmesid_jax.config.schema import FROM_EVENTS, flatten, modalities, split_at
from mmesid_jax.data import held_out_items
from mmesid_jax.data.dataset import Dataset, prepare_dataset
from mmesid_jax.data.features import read_features
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation import cold_start_ranks, ranking
from mmesid_jax.evaluation.evaluator import RankingModel
from mmesid_jax.files.artifact import write_text
from mmesid_jax.files.lock import LOCK, lock_folder
from mmesid_jax.files.provenance import check_own_folder, check_same_settings
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.reports.test_ranks import make_evaluator
from mmesid_jax.stages import new_item_codes
from mmesid_jax.stages.blend_stage import BLEND
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import (
  Workdir,
  check_workdir,
  feature_dir,
  open_workdir,
  plain_data_dir,
)

SPLIT, RESULT = "cold_split.json", "cold_start.json"
WHOLE, WARM = "whole_dataset", "warm"  # folders: all data's cache, the files without cold items


def run_cold_start(
  config: ConfigDict, path: pathlib.Path, *, fraction: float, split_seed: int, overwrite: bool
) -> None:
  """Runs the experiment in the workdir `path`; a run that was stopped continues.

  Training reads the folder `warm`, in which the held-out items do not exist. Writes cold_split.json
  (the held-out items, by their ids in the whole data set) and cold_start.json. Raises UserError.
  """
  config = ConfigDict(config)
  pipeline.check_config(config)
  content = _content_modalities(config)
  check_workdir(path)
  network = path / f"{RECOMMENDER.name}.safetensors"
  if RECOMMENDER.name not in config.stages and not network.exists():
    raise UserError(
      f"{network}: no such file; new items are ranked by it: add {RECOMMENDER.name} to "
      "--config.stages"
    )
  source = plain_data_dir(config, path)
  dataset = prepare_dataset(source, path / WHOLE, split_at(config))
  tables = feature_dir(config, source)
  features = {m: read_features(tables / config.features[m], dataset.num_items) for m in content}
  split = held_out_items.hold_out_items(dataset.num_items, fraction, split_seed)
  with lock_folder(path / WARM):
    check_own_folder(path / WARM, path / SPLIT, ignore=(LOCK,))
    _keep_split(dataset, split, fraction, split_seed, path / SPLIT, overwrite)
    held_out_items.write_warm_dataset(dataset, split, features, path / WARM)
    config.data.source, config.data.dir = "files", str(path / WARM)
    config.features.update({m: f"{m}.npy" for m in content})
    pipeline.run_pipeline(config, path, overwrite=overwrite)
    _evaluate(open_workdir(config, path), dataset, split, features)


def _content_modalities(config: ConfigDict) -> list[str]:
  """The modalities of an item that nobody has met yet: all but the collaborative one."""
  if config.features.collaborative not in ("", "stage"):
    raise UserError(
      f"--config.features.collaborative={config.features.collaborative}: vectors made "
      'elsewhere may know of the items that are held out; take "stage" or ""'
    )
  if content := [m for m in modalities(config) if m != FROM_EVENTS]:
    return content
  raise UserError("--config.features: new items need content; name a table, such as features.text")


def _keep_split(
  dataset: Dataset,
  split: held_out_items.ItemSplit,
  fraction: float,
  seed: int,
  file: pathlib.Path,
  overwrite: bool,
) -> None:
  made_from = {"fraction": fraction, "split_seed": seed, "dataset": dataset.fingerprint}
  if file.is_file() and not overwrite:
    try:
      before = dict(read_json_object(file)["made_from"])
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{file}: not a split; delete the folder it is in") from error
    label, remedy = f"{file}: holds out other items", "choose another --workdir, or --overwrite"
    check_same_settings(before, made_from, label=label, remedy=remedy)
  ids = {"warm": split.warm.tolist(), "cold": split.cold.tolist()}
  write_text(file, json.dumps({"made_from": made_from, **ids}) + "\n")


def _evaluate(
  workdir: Workdir,
  dataset: Dataset,
  split: held_out_items.ItemSplit,
  features: dict[str, np.ndarray],
) -> None:
  """Ranks by the trained model and by content, prints the tables, writes cold_start.json."""
  config, warm = workdir.config, len(split.warm)
  cases, later_Q = held_out_items.cold_cases(dataset, split, workdir.dataset)
  if not len(cases):
    raise UserError("no user meets a held-out item after another item; try a larger --fraction")
  order = np.concatenate([[0], split.warm, split.cold])
  content_IV = cold_start_ranks.content_vectors({m: x_IV[order] for m, x_IV in features.items()})
  by_last = cold_start_ranks.ndcg_by_last(
    content_IV[: warm + 1], held_out_items.valid_cases(workdir.dataset)
  )
  last = max(by_last, key=by_last.get)
  ranks = {f"nearest to last {last}": cold_start_ranks.nearest_ranks(content_IV, cases, last, warm)}
  new_items = {m: x_IV[split.cold] for m, x_IV in features.items()}
  known = {}
  for stage in (RECOMMENDER, *((BLEND,) if BLEND.name in config.stages else ())):
    before = stage.load_model(workdir)
    model = new_item_codes.append_new_items(before, workdir.path, config, new_items)
    known[stage.model_name] = _known_item_metrics(workdir, stage, before, model)
    layout = evaluation_layout(stage.layout(config), config.evaluation.targets)
    ranks[stage.model_name] = cold_start_ranks.model_ranks(model, cases, layout, warm)
  result: dict[str, Any] = {
    "items": {"warm": warm, "cold": len(split.cold)},
    "known items": known,
    "nearest": {"last": last, f"valid {cold_start_ranks.SELECT} by last": by_last},
    "config": flatten(config),
  }
  for name, chosen_Q in {
    "anywhere in a user's sequence": np.ones(len(cases), bool),
    "after the user's training part": later_Q,
  }.items():
    if chosen_Q.any():
      result[name] = _summarize(config, split, cases, ranks, chosen_Q)
      targets, items = result[name]["targets"], result[name]["items"]
      reporter.info(f"\ncold items met {name}: {targets:,} targets, {items:,} items")
      reporter.info(ranking.ranking_table(result[name]["models"]))
  reporter.info(f"\nknown items, test, history masked, beside {len(split.cold)} new ones")
  reporter.info(ranking.ranking_table(known))
  write_text(workdir.path / RESULT, json.dumps(result, indent=1) + "\n")
  reporter.info(f"with 95 % intervals: {workdir.path / RESULT}")


def _known_item_metrics(
  workdir: Workdir, stage: Stage, before: RankingModel, after: RankingModel
) -> dict[str, dict]:
  """Metrics of the test items, which are all known, with the history masked: "known items" by
  the model of the workdir, "all items" by the one whose candidates are the new items, too."""
  evaluator, c = make_evaluator(workdir, stage, "test"), workdir.config
  options = {"resamples": c.evaluation.resamples, "seed": c.seed}
  return {
    candidates: ranking.summarize_ranks(
      evaluator.model_ranks(model)["masked"], c.evaluation.cutoffs, **options
    )
    for candidates, model in (("known items", before), ("all items", after))
  }


def _summarize(
  config: ConfigDict,
  split: held_out_items.ItemSplit,
  cases: held_out_items.Cases,
  ranks: dict[str, dict[str, np.ndarray]],
  chosen_Q: np.ndarray,
) -> dict[str, Any]:
  """Metrics of the chosen cases by model and candidates, with intervals over cold items."""
  chosen, c = cases.where(chosen_Q), config.evaluation
  options = {"resamples": c.resamples, "seed": config.seed, "group_U": chosen.item_Q}
  metrics = {
    model: {
      candidates: ranking.summarize_ranks(rank_Q[chosen_Q], c.cutoffs, **options)
      for candidates, rank_Q in by_candidates.items()
    }
    for model, by_candidates in ranks.items()
  }
  chance = cold_start_ranks.chance_metrics(chosen, len(split.warm), len(split.cold), c.cutoffs)
  return {
    "targets": len(chosen),
    "items": len(np.unique(chosen.item_Q)),
    "models": {"chance": chance, **metrics},
  }
