"""A run's folder: its configuration, its data set, and where artifacts and features are."""

import dataclasses
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mmesid_jax.config.saved import read_config
from mmesid_jax.config.schema import BASELINES, STAGES, modalities, split_at
from mmesid_jax.data.dataset import Dataset, evaluated_users, prepare_dataset, read_dataset
from mmesid_jax.data.features import open_features, read_features
from mmesid_jax.data.folder.tfds_reader import export_plain_files
from mmesid_jax.data.synthetic import SYNTHETIC_FILES, write_synthetic
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files import artifact
from mmesid_jax.files.atomic import atomic_folder, refuse_linked_folders
from mmesid_jax.files.digest import file_sha256
from mmesid_jax.files.provenance import check_own_folder, is_made_from
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.parallel.mesh import parse_mesh

REFIT = "refit"  # the folder of the refit, in the workdir
REFRESHED = "refreshed_counts"  # an artifact of the command refresh
CHOSEN = "chosen.json"  # makes a workdir a refit: stage -> what the first run chose for it
# Folders that runs make in a workdir after its MARKS; and all that they make: the others are
# checked one by one, a refit as a workdir of its own.
LATER_FOLDERS = (*STAGES, *BASELINES, "adapter", "ranks")
FOLDERS = (
  *(*LATER_FOLDERS, REFIT, "dataset", "synthetic", "plain"),
  *("whole_dataset", "warm"),  # of the cold-start experiment
)
# Files that commands write at the top of a workdir, beside artifacts and config.json; and those of
# which one is written before them in every workdir or refit.
FILES = (
  *("environment.json", "evaluation.json", "evaluation_valid.json", "cold_start.json"),
  *("semantic_ids.json", "semantic_ids.html", "served_events.jsonl"),
)
MARKS = ("config.json", CHOSEN, "dataset/dataset.json")
# What training writes in the folder of a stage, also when it is killed as it writes.
OF_TRAINING = re.compile(
  r"(fingerprint|metrics\.jsonl|trackers\.json)|"
  r"\.(fingerprint|metrics\.jsonl|trackers\.json)\.[0-9a-f]{8}\.tmp|"
  r"(tensorboard/events|trace/plugins/profile/|(steps|best|damaged)/\d+[./]).*",
  re.DOTALL,
)
OWN_VECTORS = "stage"  # a modality's source: the collaborative stage, not a file
# What Orbax takes for a pattern of names, for a separator, or for a store, in the full path of a
# checkpoint: it would read or write in other folders.
NO_CHECKPOINTS = re.compile(r"[*?\[\\]|^/(az|gs|hf|s3)/")


def check_workdir(path: pathlib.Path) -> None:
  """Raises UserError for a path under which a run cannot keep checkpoints, for a link among its
  FOLDERS, and for one of FILES or anything in LATER_FOLDERS where no run began: it would be
  replaced."""
  full = path.absolute()
  if found := NO_CHECKPOINTS.search(str(full)):
    where = "" if full == path else f", in full {full}"
    raise UserError(
      f"--workdir={path}{where}: no checkpoint can be kept in a path with {found[0]}; choose "
      "another, or a link to it without"
    )
  refuse_linked_folders(path, FOLDERS)
  if not any((path / mark).is_file() for mark in MARKS):
    top = [path / name for name in FILES]
    inside = [file for name in LATER_FOLDERS for file in sorted((path / name).rglob("*"))]
    for file in [*filter(pathlib.Path.exists, top), *filter(pathlib.Path.is_file, inside)]:
      raise UserError(
        f"{file}: was not written by a run; move it away, or choose another --workdir"
      )


def check_stage_folders(path: pathlib.Path) -> None:
  """Raises UserError for a file in a stage's folder that no training wrote: redoing the stage would
  remove it."""
  for folder in (path / name for name in (*STAGES, *BASELINES)):
    for file in sorted(folder.rglob("*")):
      if not file.is_dir() and not OF_TRAINING.fullmatch(str(file.relative_to(folder))):
        raise UserError(
          f"{file}: was not written by a run, and --overwrite removes {folder}; move it away"
        )


@dataclasses.dataclass(frozen=True)
class Workdir:
  """One experiment's folder: artifacts beside each other, a folder for every stage's training.

  A refit is a workdir of its own, in the folder `refit` of the first run's.
  """

  path: pathlib.Path
  config: ConfigDict
  dataset: Dataset
  data_dir: pathlib.Path  # of the plain files
  feature_dir: pathlib.Path  # where relative names of feature tables begin
  chosen: Mapping[str, Mapping[str, Any]] | None = None  # the content of CHOSEN, of a refit

  @property
  def is_refit(self) -> bool:
    """Whether its stages train on validation items, too, with what another run chose."""
    return self.chosen is not None

  @property
  def first_run(self) -> pathlib.Path:
    """The workdir whose refit this one is, in full: the path may be `.`."""
    return self.path.resolve().parent

  def refit(self, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> "Workdir":
    """The workdir of this one's refit. chosen: stage -> `Stage.choice`."""
    path, dataset = self.path / REFIT, self.dataset.refitted()
    return dataclasses.replace(self, path=path, dataset=dataset, chosen=chosen or {})

  def chosen_for(self, stage: str) -> Mapping[str, Any]:
    """Choice of the first run for the stage of a refit. Raises UserError."""
    if not isinstance(self.chosen.get(stage), dict):
      raise UserError(
        f"{self.path / CHOSEN}: does not say what the first run chose for the stage {stage}; "
        f"run mmesid_jax.train --refit --workdir={self.first_run} with it"
      )
    return self.chosen[stage]

  def artifact(self, stage: str) -> pathlib.Path:
    return self.path / f"{stage}.safetensors"

  def folder(self, stage: str) -> pathlib.Path:
    """Checkpoints, metrics and event files of the stage's training."""
    return self.path / stage

  def feature_file(self, modality: str) -> pathlib.Path | None:
    """The file of a modality's table; None for the collaborative stage's own vectors."""
    source = self.config.features[modality]
    return None if source == OWN_VECTORS else self.feature_dir / source

  def feature_digests(self) -> dict[str, str]:
    """modality -> sha256 of its table; of the collaborative stage's own vectors, "stage"."""
    files = {modality: self.feature_file(modality) for modality in modalities(self.config)}
    return {m: OWN_VECTORS if file is None else file_sha256(file) for m, file in files.items()}

  def features(
    self, *, mapped: bool = False, names: Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """modality -> float32 [I, V], row 0 zero. mapped: memory maps in the files' own type where
    `open_features` can. names: some of the modalities; None = all that have a source. Raises
    UserError for a table that does not fit."""
    read_table = open_features if mapped else read_features
    tables = {}
    for modality in modalities(self.config) if names is None else names:
      if (file := self.feature_file(modality)) is None:
        found, _ = artifact.read_artifact(self.artifact("collaborative"), "collaborative")
        tables[modality] = found["items"]
      else:
        tables[modality] = read_table(file, self.dataset.num_items)
    return tables

  def check_targets(self, split: str) -> None:
    """Raises UserError where no user has a target in the split, "valid" or "test"."""
    if not len(evaluated_users(self.dataset, split)):
      users = self.dataset.split
      raise UserError(
        f"{self.data_dir}: no user has a {split} target; the {users.name} split takes them of "
        f"{users.evaluates}"
      )

  def check_features(self) -> None:
    """Reads through every table that comes from a file. Raises UserError for one that does not
    fit."""
    for modality in modalities(self.config):
      if (file := self.feature_file(modality)) is not None:
        open_features(file, self.dataset.num_items)


def open_workdir(config: ConfigDict, path: pathlib.Path) -> Workdir:
  """The workdir `path`, a refit where it holds CHOSEN, with the data set read or made. Raises
  UserError, also for a link among its FOLDERS: a workdir may come from a stranger."""
  refuse_linked_folders(path, FOLDERS)
  folder = plain_data_dir(config, path)
  set_compilation_cache(config)
  dataset = prepare_dataset(folder, path / "dataset", split_at(config))
  workdir = Workdir(path, config, dataset, folder, feature_dir(config, folder))
  if not (path / CHOSEN).exists():
    return workdir
  chosen = read_json_object(path / CHOSEN)
  return dataclasses.replace(workdir, dataset=dataset.refitted(), chosen=chosen)


def reopen_workdir(
  path: pathlib.Path,
  moved_to: str | None = None,
  mesh: Sequence[str] | None = None,
  *,
  newer_data: bool = False,
) -> Workdir:
  """The workdir of an earlier run, under the configuration that it was trained with.

  Args:
    moved_to: where its data is now.
    mesh: devices on each axis, if not as in training.
    newer_data: only warn of other data than was trained on; the histories may have grown.

  Raises UserError.
  """
  config = read_config(path)
  if moved_to:
    if config.data.source == "synthetic":
      raise UserError(
        f"--data_dir={moved_to}: {path} makes its own synthetic catalogue; leave it out"
      )
    config.data.dir = moved_to
  if mesh is not None:
    config.mesh = parse_mesh(mesh)
  workdir = open_workdir(config, path)
  _check_same_data(workdir, newer_data)
  return workdir


def _check_same_data(workdir: Workdir, newer_data: bool) -> None:
  """Raises UserError, or warns, where the data is not what an artifact was made from."""
  for stage in (*STAGES, *BASELINES):
    file = workdir.artifact(stage)
    header = artifact.read_header(file, stage) if file.is_file() else None
    if header is None:
      continue
    if workdir.dataset.has_other_keys(header.get("items", {})):
      changed = f"{workdir.dataset.items_path}: holds items with other keys than {file} was"
    elif header["dataset"] != workdir.dataset.fingerprint and not (
      newer_data and _is_counted(workdir)
    ):
      changed = f"{workdir.data_dir}: holds other users, items or interactions than {file} was"
    else:
      continue
    if not newer_data:
      raise UserError(f"{changed} trained on; name the folder of those with --data_dir")
    reporter.warn(f"{changed} trained on; its item ids must mean the same items")
    return


def _is_counted(workdir: Workdir) -> bool:
  """Whether `refresh` has found that the data continue those of training."""
  file = workdir.artifact(REFRESHED)
  return file.is_file() and (
    artifact.read_header(file, REFRESHED)["dataset"] == workdir.dataset.fingerprint
  )


def plain_data_dir(config: ConfigDict, path: pathlib.Path) -> pathlib.Path:
  """The folder of plain files that config.data names. A synthetic catalogue, and the plain files of
  a TensorFlow dataset, are written below `path` first."""
  if config.data.source == "synthetic":
    return _synthetic(config, path / "synthetic")
  if config.data.source == "tfds":
    export_plain_files(pathlib.Path(config.data.dir), path / "plain")
    return path / "plain"
  return pathlib.Path(config.data.dir)


def count_data(config: ConfigDict) -> tuple[int, int, int]:
  """Users, items and interactions of the data that config.data names. Raises UserError."""
  with tempfile.TemporaryDirectory() as temporary:
    dataset = read_dataset(plain_data_dir(config, pathlib.Path(temporary)))
  return len(dataset), dataset.num_items, len(dataset.items)


def feature_dir(config: ConfigDict, folder: pathlib.Path) -> pathlib.Path:
  """Where relative names of feature tables begin: config.data.dir, or for a synthetic catalogue the
  `folder` of its plain files."""
  return folder if config.data.source == "synthetic" else pathlib.Path(config.data.dir)


def set_compilation_cache(config: ConfigDict) -> None:
  """Keeps what takes a second or more to compile in a folder of the user, for later runs.

  Unless the user has named another one (JAX_COMPILATION_CACHE_DIR), it is mmesid_jax in
  XDG_CACHE_HOME or ~/.cache. It is never in a workdir: what is kept is machine code that runs, and
  a workdir may come from a stranger. Nothing is kept with config.run.compilation_cache False, and
  where the folder cannot be made or others may write into it.
  """
  if not config.run.compilation_cache or jax.config.jax_compilation_cache_dir:
    return
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  folder = pathlib.Path(caches, "mmesid_jax", "compiled")
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
  except OSError:
    is_own = False
  if not is_own:
    reporter.info(f"{folder}: is not writable for you alone, so no compiled program is kept")
    return
  jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _synthetic(config: ConfigDict, folder: pathlib.Path) -> pathlib.Path:
  """The folder of the synthetic catalogue, written unless it is there with the same sizes."""
  sizes = config.data.synthetic
  made_from = sizes.to_dict()
  mark = folder / "made_from.json"
  if is_made_from(mark, made_from):
    return folder
  check_own_folder(folder, mark)
  with atomic_folder(folder, replaces=(*SYNTHETIC_FILES, mark.name)) as temporary:
    write_synthetic(
      temporary,
      users=sizes.num_users,
      items=sizes.num_items,
      clusters=sizes.num_clusters,
      seed=sizes.seed,
    )
    (temporary / mark.name).write_text(json.dumps(made_from, sort_keys=True))
  return folder
