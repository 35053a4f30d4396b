"""Runs the stages that a configuration names, in order; skips one whose artifact is up to date."""

import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from mmesid_jax.config.schema import (
  LOCATIONS,
  RUN_KEYS,
  check,
  flatten,
  identity,
  read_config,
)
from mmesid_jax.data import split as splits
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation import codebook_health, geometry, ranking
from mmesid_jax.files import artifact
from mmesid_jax.files.lock import locked
from mmesid_jax.parallel import processes, sharding
from mmesid_jax.reports import id_report, test_ranks
from mmesid_jax.stages import (
  backbone,
  collaborative_stage,
  recommender_stage,
  semantic_id_stage,
  sequence_task,
)
from mmesid_jax.stages.workdir import Workdir, open_workdir

RUN = {
  "collaborative": collaborative_stage.run,
  "semantic_ids": semantic_id_stage.run,
  "recommender": recommender_stage.run,
}


def run(
  config: ConfigDict,
  path: pathlib.Path,
  *,
  overwrite: bool = False,
  others: Sequence[pathlib.Path] = (),
) -> Workdir:
  """Trains what is not up to date, then evaluates on test. Everything is checked before anything
  trains. An artifact that one of the `others`, workdirs too, holds with the fingerprint that it
  would have here is taken from there.

  Raises UserError for a configuration out of range, unreadable data, or a workdir that holds
  another experiment (without `overwrite`, which redoes the stale stages only) or that another run
  trains in.
  """
  check_config(config)
  with sharding.use_mesh(sharding.mesh_from_config(config.mesh)), locked(path):
    return _run(config, path, overwrite, others)


def _run(
  config: ConfigDict, path: pathlib.Path, overwrite: bool, others: Sequence[pathlib.Path]
) -> Workdir:
  for stage in ("collaborative", "recommender"):
    if stage in config.stages:
      sequence_task.check_batch_divides(stage, config[stage])
  if "recommender" in config.stages:
    backbone.check_backbone_divides(config.recommender)
  sharding.check_divides("--config.evaluation.targets", config.evaluation.targets, "targets")
  _check_identity(config, path, overwrite)
  workdir = processes.main_first("prepare the data", lambda: open_workdir(config, path))
  workdir.check_features()
  stages = [s for s in RUN if s in config.stages]
  if "semantic_ids" in stages:
    semantic_id_stage.check_quantizer(config.semantic_ids, workdir.dataset.num_items)
  stale = _stale(workdir, stages, overwrite)
  processes.barrier("look through the workdir")  # before the first process changes it
  for stage in stale if processes.is_main() else ():
    shutil.rmtree(workdir.folder(stage), ignore_errors=True)
    workdir.artifact(stage).unlink(missing_ok=True)
  _describe(config, path)
  processes.barrier("remove what is stale")
  users, items = len(workdir.dataset), workdir.dataset.num_items
  print(f"{path}: {users:,} users, {items:,} items, {len(workdir.dataset.items):,} interactions")
  if workdir.dataset.times is not None:
    print(splits.describe_split(workdir.dataset.split, workdir.dataset.times))
  for stage in stages:
    if workdir.artifact(stage).exists():
      print(f"{stage}: up to date")
      continue
    if source := _taken(workdir, stage, others):
      print(f"{stage}: taken from {source}")
      continue
    artifact.write_text(_mark(workdir, stage), workdir.fingerprint(stage) + "\n")
    RUN[stage](workdir)
    processes.barrier(f"write {stage}")
    print(f"{stage}: wrote {workdir.artifact(stage)}")
  evaluate(workdir, "test")
  return workdir


def check_config(config: ConfigDict) -> None:
  """Fills in what a checkpoint knows, then checks the whole of it. Raises UserError."""
  backbone.resolve_sizes(config)
  check(config)
  backbone.check_checkpoint(config)


def evaluate(workdir: Workdir, split: str) -> None:
  """Evaluates, on the mesh of workdir.config, and prints the table."""
  with sharding.use_mesh(sharding.mesh_from_config(workdir.config.mesh)):
    result = test_ranks.evaluate(workdir, split)
  scheme, left_out = workdir.dataset.split.name, result["left_out"]
  print(
    f"\n{split} ({scheme}): {result['users']:,} users"
    + (f" ({left_out:,} left out: no item before the target)" if left_out else "")
    + ", every item ranked; masked = without the history's items"
  )
  print(ranking.table(result["models"]))
  print(f"with 95 % intervals: {workdir.path / test_ranks.file_name(split)}")


def examine(workdir: Workdir) -> None:
  """Examines the semantic IDs and prints the tables. Raises UserError."""
  found = id_report.examine(workdir)
  print(codebook_health.table(found["health"]))
  print(f"\n{geometry.table(found['tau'], found['inputs'])}")
  print(*found["notes"], sep="\n")
  print(f"with pictures: {workdir.path / id_report.PAGE}; all figures: {id_report.FIGURES}")


def _check_identity(config: ConfigDict, path: pathlib.Path, overwrite: bool) -> None:
  if overwrite or not (path / "config.json").is_file():
    return
  old, new = identity(read_config(path)), identity(config)
  different = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
  if different:
    shown = ", ".join(f"{k} is {old.get(k)}, now {new.get(k)}" for k in different[:3])
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    raise UserError(
      f"{path}: holds another experiment: {shown}{more}; "
      "choose another --workdir, or --overwrite to redo the stages that this changes"
    )


def _mark(workdir: Workdir, stage: str) -> pathlib.Path:
  """The file that says for which fingerprint the stage's folder was begun."""
  return workdir.folder(stage) / "fingerprint"


def _stale(workdir: Workdir, stages: list[str], overwrite: bool) -> list[str]:
  """Stages begun or finished under another fingerprint. Raises UserError where that was not asked
  for."""
  stale = []
  for stage in stages:
    found, mark = set(), _mark(workdir, stage)
    if workdir.artifact(stage).exists():
      found.add(artifact.read_header(workdir.artifact(stage), stage)["fingerprint"])
    elif mark.exists():
      found.add(mark.read_text().strip())
    for upstream in workdir.needs(stage):
      if upstream not in stages and not workdir.artifact(upstream).exists():
        raise UserError(
          f"{workdir.artifact(upstream)}: no such file; the stage {stage} needs it: "
          f"add {upstream} to --config.stages"
        )
    if found - {workdir.fingerprint(stage)}:
      if not overwrite:
        raise UserError(
          f"{workdir.path}: the stage {stage} was made from other data or features; "
          "--overwrite redoes it"
        )
      stale.append(stage)
  return stale


def _taken(workdir: Workdir, stage: str, others: Sequence[pathlib.Path]) -> pathlib.Path | None:
  """The workdir whose artifact is now ours too, None where none has it: a link to the same bytes,
  or a copy. Artifacts are replaced and never written into, so neither run can change the other's.
  """
  for path in others:
    source = path / workdir.artifact(stage).name
    try:
      if artifact.read_header(source, stage)["fingerprint"] != workdir.fingerprint(stage):
        continue
    except UserError:  # not finished, or damaged: what is not readable is not taken
      continue
    if stage == "recommender" and (path / "adapter").is_dir():
      shutil.copytree(path / "adapter", workdir.path / "adapter", dirs_exist_ok=True)
    temporary = workdir.artifact(stage).with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
      os.link(source, temporary)
    except OSError:  # another file system, or one without links
      shutil.copy(source, temporary)
    os.replace(temporary, workdir.artifact(stage))
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
