"""Runs the stages that a configuration names, in order; skips one whose artifact is up to date."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from mmesid_jax.config.checks import check_values
from mmesid_jax.config.paths import LOCATIONS
from mmesid_jax.config.saved import RUN_KEYS, identity, read_config
from mmesid_jax.config.schema import flatten
from mmesid_jax.config.sizes import fit_sizes_to_data
from mmesid_jax.data import split as splits
from mmesid_jax.data.folder.items import has_titles
from mmesid_jax.data.repeats import Repeats, count_repeats, describe_repeats
from mmesid_jax.display import reporter
from mmesid_jax.display.duration import format_duration
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation import codebook_health, geometry, metrics, ranking
from mmesid_jax.files import artifact
from mmesid_jax.files.atomic import atomic_file
from mmesid_jax.files.lock import lock_folder
from mmesid_jax.files.provenance import check_same_settings
from mmesid_jax.files.readers import read_bytes, read_json_object
from mmesid_jax.parallel import processes, sharding
from mmesid_jax.parallel.mesh import mesh_from_config, use_mesh
from mmesid_jax.reports import id_report, id_verdict, test_ranks, training_end
from mmesid_jax.stages import backbone
from mmesid_jax.stages.registry import MODELS, STAGES
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import (
  CHOSEN,
  OWN_VECTORS,
  Workdir,
  check_stage_folders,
  check_workdir,
  count_data,
  open_workdir,
)
from mmesid_jax.training.tracker import check_trackers

TEXT_TABLE = "text.npy"  # as `encode --modality=text` names it


def run_pipeline(
  config: ConfigDict,
  path: pathlib.Path,
  *,
  overwrite: bool = False,
  others: Sequence[pathlib.Path] = (),
  refit: bool = False,
) -> Workdir:
  """Trains the stages that are not up to date in the workdir `path`, then evaluates on test.

  Everything is checked before anything trains. An artifact with the right fingerprint in one of the
  `others`, which are workdirs too, is taken from there instead of trained. refit: then trains the
  same stages on training and validation items, in the workdir `path`/refit, with the settings and
  epochs that were chosen, and evaluates them on test.

  Raises UserError for a configuration out of range, unreadable data, or a workdir that holds
  another experiment (`overwrite` redoes the stages that this concerns) or is in use by another run.
  """
  start = time.monotonic()
  check_config(config)
  check_workdir(path)
  stages = [s for name, s in STAGES.items() if name in config.stages and s.applies(config)]
  with contextlib.ExitStack() as context:
    context.enter_context(use_mesh(mesh_from_config(config.mesh)))
    context.enter_context(lock_folder(path))
    workdir = _open(config, path, stages, overwrite)
    if refit:
      _check_refit(workdir, stages, overwrite)
      context.enter_context(lock_folder(workdir.refit().path))
    _run_stages(workdir, stages, others)
    report_ranks(workdir, "test")
    if refit:
      _refit(workdir, stages, overwrite)
  reporter.info(f"\nDone in {format_duration(time.monotonic() - start)}.")
  if workdir.artifact("recommender").exists():
    models = [stage for name, stage in MODELS.items() if workdir.artifact(name).exists()]
    fits = config.recommender.head == "generate" or all(stage.fits(workdir) for stage in models)
    alone = "" if fits else " --model=network"
    reporter.info(f"Next: python -m mmesid_jax.recommend --workdir={path} --user=1,2,3{alone}")
  return workdir


def _refit(workdir: Workdir, stages: Sequence[Stage], overwrite: bool) -> None:
  """Trains the stages again, with what the workdir's artifacts say was chosen, and evaluates."""
  made = [stage for stage in STAGES.values() if workdir.artifact(stage.name).exists()]
  refit = workdir.refit({stage.name: stage.choice(workdir) for stage in made})
  reporter.info(f"\n{refit.path}: trains again, on training and validation items")
  _begin(refit, stages, overwrite)
  _run_stages(refit, stages)
  report_ranks(refit, "test")


def _check_refit(workdir: Workdir, stages: Sequence[Stage], overwrite: bool) -> None:
  """Raises UserError, before anything trains, for what would stop the refit after all of it."""
  if workdir.is_refit:
    raise UserError(f"--refit: {workdir.path} is a refit itself; name the workdir of the first run")
  refit = workdir.refit()
  if refit.path.is_file():
    raise UserError(f"{refit.path}: is a file, where a refit has its folder; move it away")
  check_workdir(refit.path)
  _check_identity(workdir.config, refit.path, overwrite)
  _check_upstream(refit, stages)
  for stage in STAGES.values():
    if workdir.artifact(stage.name).exists():
      stage.choice(workdir)  # raises UserError for an artifact of an earlier version


def _run_stages(
  workdir: Workdir, stages: Sequence[Stage], others: Sequence[pathlib.Path] = ()
) -> None:
  for number, stage in enumerate(stages, 1):
    reporter.info(f"\nStage {number} of {len(stages)}: {stage.name} ({stage.summary})")
    _bring_up_to_date(workdir, stage, others)


def _open(
  config: ConfigDict, path: pathlib.Path, stages: Sequence[Stage], overwrite: bool
) -> Workdir:
  """The workdir, checked for these stages and without their stale artifacts."""
  for stage in stages:
    stage.check(config)
  sharding.check_divides("--config.evaluation.targets", config.evaluation.targets, "targets")
  _check_identity(config, path, overwrite)
  workdir = processes.main_first("prepare the data", lambda: open_workdir(config, path))
  for split in ("test",) if workdir.is_refit else ("valid", "test"):
    workdir.check_targets(split)
  if any(stage.reads_features for stage in stages):
    workdir.check_features()
  for stage in stages:
    stage.check_data(workdir)
  _check_upstream(workdir, stages)
  _begin(workdir, stages, overwrite)
  dataset = workdir.dataset
  users, items = len(dataset), dataset.num_items
  reporter.info(f"{path}: {users:,} users, {items:,} items, {len(dataset.items):,} interactions")
  if dataset.temporal_cuts is not None:
    reporter.info(splits.describe_split(dataset.split, dataset.temporal_cuts))
  if repeats := describe_repeats(count_repeats(dataset)):
    reporter.info(repeats)
  if text := describe_unread_text(workdir):
    reporter.info(text)
  return workdir


def _begin(workdir: Workdir, stages: Sequence[Stage], overwrite: bool) -> None:
  """Removes the stages' stale artifacts and writes down what the workdir is."""
  stale = _stale(workdir, stages, overwrite)
  processes.barrier("look through the workdir")  # before the first process changes it
  for stage in stale if processes.is_main() else ():
    shutil.rmtree(workdir.folder(stage.name), ignore_errors=True)
    workdir.artifact(stage.name).unlink(missing_ok=True)
  if workdir.is_refit:
    artifact.write_text(workdir.path / CHOSEN, json.dumps(workdir.chosen, indent=1) + "\n")
  _describe(workdir.config, workdir.path)
  processes.barrier("remove what is stale")


def describe_unread_text(workdir: Workdir) -> str | None:
  """Says how titles become vectors that the stages read; None where that is done or of no use.

  It is of no use without titles, for stages that read no tables, and where any table is named.
  """
  config, folder = workdir.config, workdir.feature_dir
  named = set(config.features.values()) - {"", OWN_VECTORS}
  if named or not any(STAGES[name].reads_features for name in config.stages):
    return None
  items = workdir.dataset.items_path
  if items is None or not has_titles(pathlib.Path(items)):
    return None
  then = f"--config.features.text={TEXT_TABLE}"
  if (folder / TEXT_TABLE).is_file():
    return f"{folder / TEXT_TABLE} is not read: name it with {then}"
  command = f"python -m mmesid_jax.encode --data={shlex.quote(str(workdir.data_dir))}"
  command += " --modality=text --model=tfidf"
  if folder != workdir.data_dir:
    command += f" --output={shlex.quote(str(folder / TEXT_TABLE))}"
  return (
    f"{items} has titles, but no table of their vectors is named: {command} makes one in seconds, "
    f"and {then} names it"
  )


def _bring_up_to_date(workdir: Workdir, stage: Stage, others: Sequence[pathlib.Path]) -> None:
  """Trains the stage unless its artifact is there or in one of the other workdirs."""
  start = time.monotonic()
  if workdir.artifact(stage.name).exists():
    reporter.info(f"{stage.name}: up to date")
    return
  if source := _taken(workdir, stage, others):
    reporter.info(f"{stage.name}: taken from {source}")
    return
  artifact.write_text(_mark(workdir, stage), stage.fingerprint(workdir) + "\n")
  stage.train(workdir)
  processes.barrier(f"write {stage.name}")
  seconds = format_duration(time.monotonic() - start)
  reporter.info(f"{stage.name}: wrote {workdir.artifact(stage.name)} ({seconds})")


def check_config(config: ConfigDict) -> None:
  """Fills in what a checkpoint and the data know, then checks the whole. Raises UserError."""
  backbone.resolve_sizes(config)
  fit_sizes_to_data(config, count_data)
  check_values(config)
  metrics.check_select(config.evaluation.select, config.evaluation.cutoffs)
  check_trackers(config.run.trackers)
  backbone.check_checkpoint(config)


def report_ranks(workdir: Workdir, split: str) -> None:
  """Ranks the items of "valid" or "test" on the mesh of workdir.config, and prints the table and
  what to know to read it."""
  with use_mesh(mesh_from_config(workdir.config.mesh)):
    result = test_ranks.evaluate_models(workdir, split)
  rows = "; refitted = trained on validation items, too" if workdir.is_refit else ""
  scheme, left_out = workdir.dataset.split.name, result["left_out"]
  without_history = f" ({left_out:,} left out: no item before the target)" if left_out else ""
  reporter.info(
    f"\n{split} ({scheme}): {result['users']:,} users{without_history}, every item ranked; "
    f"masked = without the history's items{rows}"
  )
  reporter.info(ranking.ranking_table(result["models"]))
  if repeats := describe_repeats({split: Repeats(result["users"], result["repeated"])}):
    reporter.info(repeats)
  for line in training_end.describe_unfinished(workdir) if processes.is_main() else ():
    reporter.warn(line)
  reporter.info(f"with 95 % intervals: {workdir.path / test_ranks.evaluation_file(split)}")


def report_semantic_ids(workdir: Workdir) -> None:
  """Examines the semantic IDs, prints verdict and tables, writes a page. Raises UserError."""
  found = id_report.examine_semantic_ids(workdir)
  reporter.info(id_verdict.verdict_text(id_verdict.find_verdict(found)) + "\n")
  reporter.info(codebook_health.codebook_table(found["health"]))
  reporter.info(f"\n{geometry.geometry_table(found['tau'], found['inputs'])}")
  reporter.info("\n".join(found["notes"]))
  reporter.info(f"with pictures: {workdir.path / id_report.PAGE}; all figures: {id_report.FIGURES}")


def _check_identity(config: ConfigDict, path: pathlib.Path, overwrite: bool) -> None:
  if overwrite:
    check_stage_folders(path)
  file = path / "config.json"
  if not file.is_file():
    return
  if overwrite:
    if "semantic_ids" not in read_json_object(file):
      raise UserError(f"{file}: not the file of a run, so it is kept; choose another --workdir")
    return
  old, new = identity(read_config(path)), identity(config)
  check_same_settings(
    old,
    new,
    label=f"{path}: holds another experiment",
    remedy="choose another --workdir, or --overwrite to redo the stages that this changes",
  )


def _mark(workdir: Workdir, stage: Stage) -> pathlib.Path:
  """The file that holds the fingerprint under which the stage's folder was begun."""
  return workdir.folder(stage.name) / "fingerprint"


def _check_upstream(workdir: Workdir, stages: Sequence[Stage]) -> None:
  """Raises UserError for a stage that reads an artifact that is neither there nor to be made."""
  for stage in stages:
    for upstream in stage.upstream(workdir.config):
      if upstream not in stages and not workdir.artifact(upstream.name).exists():
        raise UserError(
          f"{workdir.artifact(upstream.name)}: no such file; the stage {stage.name} needs it: "
          f"add {upstream.name} to --config.stages"
        )


def _stale(workdir: Workdir, stages: Sequence[Stage], overwrite: bool) -> list[Stage]:
  """Stages begun or finished under another fingerprint. Raises UserError without `overwrite`."""
  stale = []
  for stage in stages:
    path, mark, fingerprints = workdir.artifact(stage.name), _mark(workdir, stage), set()
    if path.exists():
      fingerprints.add(artifact.read_header(path, stage.name)["fingerprint"])
    elif mark.exists():
      fingerprints.add(read_bytes(mark).decode(errors="replace").strip())
    if fingerprints - {stage.fingerprint(workdir)}:
      if not overwrite:
        raise UserError(
          f"{workdir.path}: the stage {stage.name} was made from other data or features, or by "
          "another version; --overwrite redoes it"
        )
      stale.append(stage)
  return stale


def _taken(workdir: Workdir, stage: Stage, others: Sequence[pathlib.Path]) -> pathlib.Path | None:
  """The workdir whose artifact is now ours too, None where none has it.

  It is a link to the same bytes, or a copy. Artifacts are replaced and never written into, so
  neither run can change the other's.
  """
  if not others:
    return None
  ours, fingerprint = workdir.artifact(stage.name), stage.fingerprint(workdir)
  for path in others:
    source = path / ours.name
    try:
      if artifact.read_header(source, stage.name)["fingerprint"] != fingerprint:
        continue
    except UserError:  # unfinished or damaged
      continue
    for folder in stage.folders:
      if (path / folder).is_dir():
        shutil.copytree(path / folder, workdir.path / folder, dirs_exist_ok=True)
    with atomic_file(ours) as temporary:
      temporary.unlink()
      try:
        os.link(source, temporary)
      except OSError:  # another file system, or one without links
        shutil.copy(source, temporary)
    return path
  return None


def _describe(config: ConfigDict, path: pathlib.Path) -> None:
  """config.json (what a later run is compared with) and environment.json (what made it)."""
  saved = ConfigDict(config)
  where = {key: place for key, place in flatten(config).items() if key in LOCATIONS and place}
  absolute = {key: str(pathlib.Path(place).absolute()) for key, place in where.items()}
  saved.update_from_flattened_dict(absolute)
  artifact.write_text(path / "config.json", saved.to_json_best_effort(indent=1) + "\n")
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  environment = {
    "versions": {name: importlib.metadata.version(name) for name in packages},
    "python": platform.python_version(),
    "devices": [device.device_kind for device in jax.devices()],
    "git": _git_revision(),
    "run": {k: v for k, v in flatten(config).items() if k.split(".")[0] in RUN_KEYS},
  }
  artifact.write_text(path / "environment.json", json.dumps(environment, indent=1) + "\n")


def _git_revision() -> str | None:
  """The revision of the source tree, None for an installed package without one."""
  source = pathlib.Path(__file__).parent
  command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
