"""What every stage is given: the configuration, the data set, and where artifacts and fingerprints
are."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.config.schema import identity, modalities, read_config, split_at
from mmesid_jax.data.dataset import Dataset, prepare_dataset
from mmesid_jax.data.features import open_features, read_features
from mmesid_jax.data.folder.tfds_reader import export_plain_files
from mmesid_jax.data.synthetic import write_synthetic
from mmesid_jax.files import artifact
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.placement import model_tensors
from mmesid_jax.stages import backbone
from mmesid_jax.training.loop import Result, Task, fit

UPSTREAM = {
  "collaborative": (),
  "semantic_ids": ("collaborative",),
  "recommender": ("collaborative", "semantic_ids"),
}
OTHER_KEYS = {  # keys of other sections that a stage's artifact depends on
  "collaborative": (),
  "semantic_ids": ("recommender.width",),  # codes are as wide as what reads them
  "recommender": (),
}


@dataclasses.dataclass(frozen=True)
class Workdir:
  """One experiment's folder: artifacts beside each other, a folder for every stage's training."""

  path: pathlib.Path
  config: ConfigDict
  dataset: Dataset
  plain_data_dir: pathlib.Path  # of the plain files
  feature_dir: pathlib.Path  # where relative names of feature tables begin

  def artifact(self, stage: str) -> pathlib.Path:
    return self.path / f"{stage}.safetensors"

  def folder(self, stage: str) -> pathlib.Path:
    """Checkpoints, metrics and event files of the stage's training."""
    return self.path / stage

  def fit(self, task: Task) -> Result:
    """Trains in the folder of the task's stage, as the run keys say. Raises as `loop.fit` does."""
    run = self.config.run
    return fit(
      task,
      self.folder(task.name),
      log_every=run.log_every,
      save_every=run.save_every,
      save_minutes=run.save_minutes,
      keep=run.keep,
      profile_steps=self.config.profile.steps,
      steps_at_once=run.steps_at_once[task.name],
    )

  def needs(self, stage: str) -> tuple[str, ...]:
    """The stages whose artifacts this one reads under the present configuration."""
    own_vectors = self.config.features.collaborative == "stage"
    used = {"collaborative": own_vectors, "semantic_ids": self.config.recommender.codes != "none"}
    return tuple(s for s in UPSTREAM[stage] if used[s])

  def fingerprint(self, stage: str) -> str:
    """sha256 over everything that the artifact depends on: data, features, configuration,
    upstream."""
    own = ("seed", "evaluation.select", f"{stage}.", *OTHER_KEYS[stage])
    parts = {
      "schema": artifact.SCHEMA,
      "stage": stage,
      "dataset": self.dataset.fingerprint,
      "config": {k: v for k, v in identity(self.config).items() if k.startswith(own)},
      "upstream": {s: self.fingerprint(s) for s in self.needs(stage)},
    }
    if stage != "collaborative":
      files = {m: self.config.features[m] for m in modalities(self.config)}
      parts["features"] = {m: f if f == "stage" else self._digest(f) for m, f in files.items()}
    if stage == "recommender":
      parts |= backbone.backbone_fingerprint(self.config.recommender)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

  def _digest(self, file: str) -> str:
    with (self.tables_dir / file).open("rb") as opened:
      return hashlib.file_digest(opened, "sha256").hexdigest()

  def features(self, *, mapped: bool = False) -> dict[str, np.ndarray]:
    """modality -> float32 [I + 1, V], row 0 zero; mapped: as the files have them, in memory only
    where `open_features` must. Raises UserError for a table that does not fit."""
    read, tables = open_features if mapped else read_features, {}
    for modality in modalities(self.config):
      source = self.config.features[modality]
      if source == "stage":
        found, _ = artifact.read_artifact(self.artifact("collaborative"), "collaborative")
        tables[modality] = found["items"]
      else:
        tables[modality] = read(self.tables_dir / source, self.dataset.num_items)
    return tables

  def check_features(self) -> None:
    """Looks through every table that comes from a file. Raises UserError for one that does not
    fit."""
    for modality in modalities(self.config):
      if (source := self.config.features[modality]) != "stage":
        open_features(self.tables_dir / source, self.dataset.num_items)

  def write(
    self, stage: str, named: dict[str, np.ndarray], model: nnx.Module | None, **header: Any
  ) -> None:
    """The stage's artifact: named tensors, the model's own under "model.", and the header."""
    if model is not None:
      named = named | {f"model.{name}": x for name, x in model_tensors(model).items()}
    artifact.write_artifact(
      self.artifact(stage),
      named,
      {
        "stage": stage,
        "fingerprint": self.fingerprint(stage),
        "dataset": self.dataset.fingerprint,
        "upstream": {s: self.fingerprint(s) for s in self.needs(stage)},
        "num_items": self.dataset.num_items,
        "shapes": {
          name: list(x.shape) for name, x in named.items() if not name.startswith("model.")
        },
        **header,
      },
    )

  def read_model(self, stage: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The stage's model tensors, without their prefix, and the header."""
    found, header = artifact.read_artifact(self.artifact(stage), stage)
    return artifact.strip_prefix(found, "model."), header


def open_workdir(config: ConfigDict, path: pathlib.Path) -> Workdir:
  """The data set, prepared or made, and where the artifacts are."""
  folder = plain_data_dir(config, path)
  set_compilation_cache(config, path)
  dataset = prepare_dataset(folder, path / "dataset", split_at(config))
  return Workdir(path, config, dataset, folder, feature_dir(config, folder))


def plain_data_dir(config: ConfigDict, path: pathlib.Path) -> pathlib.Path:
  """The plain files that config.data names; within `path` synthetic ones are made, and those of a
  TensorFlow dataset written."""
  if config.data.source == "synthetic":
    return _synthetic(config, path / "synthetic")
  if config.data.source == "tfds":
    export_plain_files(pathlib.Path(config.data.dir), path / "plain")
    return path / "plain"
  return pathlib.Path(config.data.dir)


def feature_dir(config: ConfigDict, folder: pathlib.Path) -> pathlib.Path:
  """Where relative names of feature tables begin: the folder that config.data.dir names, whatever
  is read from it; of a synthetic catalogue `folder`, where its plain files are."""
  return folder if config.data.source == "synthetic" else pathlib.Path(config.data.dir)


def set_compilation_cache(config: ConfigDict, path: pathlib.Path) -> None:
  """What takes a second or more to compile is kept on disk, for the next run and for evaluation."""
  chosen_by_user = jax.config.jax_compilation_cache_dir
  if config.run.compilation_cache and not chosen_by_user:
    jax.config.update("jax_compilation_cache_dir", str((path / "compiled").absolute()))


def _synthetic(config: ConfigDict, folder: pathlib.Path) -> pathlib.Path:
  """The folder of the synthetic catalogue, written unless it is there with these very sizes."""
  made_from = json.dumps(config.data.synthetic.to_dict(), sort_keys=True)
  mark = folder / "made_from.json"
  if not (mark.is_file() and mark.read_text() == made_from):
    sizes = config.data.synthetic
    write_synthetic(
      folder,
      users=sizes.num_users,
      items=sizes.num_items,
      clusters=sizes.num_clusters,
      seed=sizes.seed,
    )
    artifact.write_text(mark, made_from)
  return folder


def reopen_workdir(
  path: pathlib.Path, moved_to: str | None = None, mesh: Sequence[str] | None = None
) -> Workdir:
  """The workdir of an earlier run, under the configuration that it was trained with; its data may
  have moved, and the mesh be another: devices on each of its axes. Raises UserError."""
  config = read_config(path)
  if moved_to:
    config.data.dir = moved_to
  if mesh is not None:
    config.mesh = sharding.parse_mesh(mesh)
  return open_workdir(config, path)


def stage_key(seed: int, stage: str) -> jax.Array:
  """The random key that a stage starts its parameters from."""
  return jax.random.fold_in(jax.random.key(seed), list(UPSTREAM).index(stage))
