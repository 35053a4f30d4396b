"""A stage of the pipeline: it trains one model and writes one artifact."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.config.saved import artifact_keys, identity
from mmesid_jax.config.schema import KEYS, flatten
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import RankingModel
from mmesid_jax.files import artifact
from mmesid_jax.files.artifact_form import parse_mapping
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.parallel.placement import model_tensors
from mmesid_jax.stages.workdir import CHOSEN, Workdir
from mmesid_jax.training.loop import Result, Task, fit


class Stage:
  """A stage as the pipeline, evaluation and planning see it; subclasses fill it in.

  `name` names its section of the configuration, its artifact and its folder in the workdir.
  `config_keys`: keys outside of its own section that its artifact depends on. `model_name`: its row
  in tables of results, None for a stage whose model ranks no items.
  """

  name: ClassVar[str]
  summary: ClassVar[str]  # for the line "Stage 1 of 3: ..."
  config_keys: ClassVar[tuple[str, ...]] = ()
  model_name: ClassVar[str | None] = None
  reads_features: ClassVar[bool] = True  # whether its artifact depends on the feature tables
  is_random: ClassVar[bool] = True  # whether its artifact depends on the seed
  fewest_epochs: ClassVar[int] = 1  # that validation can choose
  folders: ClassVar[tuple[str, ...]] = ()  # what it writes beside its artifact
  narrow_histories: ClassVar[bool] = False  # as in Evaluator

  def upstream(self, config: ConfigDict) -> tuple["Stage", ...]:
    """The stages whose artifacts this one reads under `config`."""
    return ()

  def applies(self, config: ConfigDict) -> bool:
    """Whether there is anything for the stage to do under `config`."""
    return True

  def check(self, config: ConfigDict) -> None:
    """Raises UserError where the mesh of the context does not divide the stage's sizes."""

  def check_data(self, workdir: Workdir) -> None:
    """Raises UserError where the stage's configuration does not fit the data set."""

  def train(self, workdir: Workdir) -> None:
    """Trains, keeps the best parameters, writes the artifact. Raises what `loop.fit` raises."""
    raise NotImplementedError

  def layout(self, config: ConfigDict) -> Layout:
    """The batch shape of training, for a stage with a `model_name`."""
    raise NotImplementedError

  def load_model(self, workdir: Workdir) -> RankingModel:
    """The trained model, from the artifact, for a stage with a `model_name`."""
    raise NotImplementedError

  def further_models(self, workdir: Workdir, model: RankingModel) -> dict[str, RankingModel]:
    """Name -> other models that rank items, made of what `load_model` returned."""
    return {}

  def fits(self, workdir: Workdir) -> bool:
    """Whether the artifact was made for the others in the workdir that `load_model` reads."""
    return True

  def choice(self, workdir: Workdir) -> dict[str, Any]:
    """Reads from the artifact what validation chose and a refit takes over: the number of epochs.
    Raises UserError."""
    path = workdir.artifact(self.name)
    header = artifact.read_header(path, self.name)
    if "best_epoch" not in header:
      raise UserError(
        f"{path}: of an earlier version, which does not say what a refit needs; train the stage "
        f"{self.name} again (delete the file first)"
      )
    return {"epochs": header["best_epoch"]}

  def find_wrong_choice(self, chosen: Mapping[str, Any], workdir: Workdir) -> str | None:
    """The first fault in an answer of `choice`, in words; None for none."""
    found, most = chosen.get("epochs"), workdir.config[self.name].epochs
    if type(found) is int and self.fewest_epochs <= found <= most:
      return None
    return f"epochs={found!r}, expected a whole number from {self.fewest_epochs} to {most}"

  def chosen(self, workdir: Workdir) -> Mapping[str, Any]:
    """Returns what the first run of a refit chose for the stage. Raises UserError for what it
    cannot have chosen."""
    chosen = workdir.chosen_for(self.name)
    if fault := self.find_wrong_choice(chosen, workdir):
      raise UserError(
        f"{workdir.path / CHOSEN}: {self.name}: {fault}; train {workdir.first_run} again with "
        "--refit"
      )
    return chosen

  def further_inputs(self, config: ConfigDict) -> dict[str, str]:
    """Digests of files, other than data and features, that the artifact depends on."""
    return {}

  def fingerprint(self, workdir: Workdir) -> str:
    """sha256 of everything that the artifact depends on: data, features, configuration, upstream
    artifacts, `further_inputs`, and of a refit what was chosen."""
    config = workdir.config
    parts = {
      "schema": artifact.SCHEMA,
      "stage": self.name,
      "dataset": workdir.dataset.fingerprint,
      "config": artifact_keys(config, self._key_prefixes),
      "upstream": self._upstream_fingerprints(workdir),
      **self.further_inputs(config),
    }
    if self.reads_features:
      parts["features"] = workdir.feature_digests()
    if workdir.is_refit:
      parts["chosen"] = self.chosen(workdir)
    return json_sha256(parts)

  def fit(self, workdir: Workdir, task: Task) -> Result:
    """Trains `task` in the stage's folder, as the run keys say; of a refit the chosen number of
    epochs, along the same schedule, without validation. Raises as `loop.fit` does."""
    run = workdir.config.run
    if workdir.is_refit:
      steps = self.chosen(workdir)["epochs"] * task.steps_per_epoch
      task = dataclasses.replace(task, steps=steps, validate=None)
    return fit(
      task,
      workdir.folder(self.name),
      log_every=run.log_every,
      save_every=run.save_every,
      save_minutes=run.save_minutes,
      keep=run.keep,
      profile_steps=workdir.config.profile.steps,
      steps_at_once=run.steps_at_once[self.name],
      trackers=run.trackers,
      settings=flatten(workdir.config),
    )

  def write(
    self,
    workdir: Workdir,
    named: Mapping[str, np.ndarray],
    model: nnx.Module | None,
    **header: Any,
  ) -> None:
    """Writes the artifact: named tensors, the model's own under "model.", and the header."""
    of_model = {} if model is None else model_tensors(model)
    artifact.write_artifact(
      workdir.artifact(self.name),
      {**named, **{f"model.{name}": x for name, x in of_model.items()}},
      {
        "stage": self.name,
        "fingerprint": self.fingerprint(workdir),
        "dataset": workdir.dataset.fingerprint,
        "upstream": self._upstream_fingerprints(workdir),
        "num_items": workdir.dataset.num_items,
        "items": workdir.dataset.item_digests,
        "config": identity(workdir.config),
        "shapes": {name: list(x.shape) for name, x in named.items()},
        **header,
      },
    )

  def read(
    self, path: pathlib.Path, config: ConfigDict
  ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and header of the artifact in the workdir `path`. Raises UserError, also where it was
    trained with another `config`."""
    file = path / f"{self.name}.safetensors"
    found, header = artifact.read_artifact(file, self.name)
    self._check_config(file, header, config)
    return found, header

  def key(self, seed: int) -> jax.Array:
    """The random key that the parameters start from. It depends on the stage's name alone, so a new
    stage leaves the others' as they are."""
    digest = hashlib.sha256(self.name.encode()).digest()
    return jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], "little"))

  @property
  def _key_prefixes(self) -> tuple[str, ...]:
    """Beginnings of the keys of the configuration that the artifact depends on."""
    return (*(("seed",) if self.is_random else ()), f"{self.name}.", *self.config_keys)

  def _check_config(
    self, file: pathlib.Path, header: Mapping[str, Any], config: ConfigDict
  ) -> None:
    """Raises UserError for a key of the stage that was another one in training, which would change
    the model unseen. A key that was added later had its default; artifacts of some earlier versions
    do not say what they were trained with."""
    if "config" not in header:
      return
    saved = flatten(parse_mapping(header["config"]))
    for key, value in identity(config).items():
      if not key.startswith(self._key_prefixes):
        continue
      trained = saved[key] if key in saved else flatten({key: KEYS[key].default})[key]
      if trained != value:
        raise UserError(
          f"{file}: trained with {key}={trained!r}, but config.json beside it says {value!r}; set "
          "it back there, or train again with --overwrite"
        )

  def _upstream_fingerprints(self, workdir: Workdir) -> dict[str, str]:
    return {s.name: s.fingerprint(workdir) for s in self.upstream(workdir.config)}
