"""Which of the models in a workdir is served, and how it is read."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from mmesid_jax.config.schema import SERVED
from mmesid_jax.errors import UserError
from mmesid_jax.models.blend import BlendModel, ServableModel
from mmesid_jax.models.generate.generated_ranking import GENERATED
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.serving.refreshed_counts import read_refreshed
from mmesid_jax.stages.blend_stage import BLEND, blend_file, load_blend
from mmesid_jax.stages.recommender_stage import RECOMMENDER, load_recommender
from mmesid_jax.stages.workdir import REFRESHED

KINDS = {"network": RecommenderModel, "blend": BlendModel, **GENERATED}


class LoadedModel(NamedTuple):
  """A model, and the artifacts that it was read from."""

  model: ServableModel
  files: Sequence[pathlib.Path]


def load_model(path: pathlib.Path, config: ConfigDict, name: str | None) -> LoadedModel:
  """The model of a workdir; name: as `Ranker.load` says. Raises UserError."""
  if name is None:
    name = "blend" if blend_file(path).exists() else "network"
    if config.recommender.head == "generate":
      name = "generated"
  if name not in SERVED:
    raise UserError(f"model={name!r}: expected one of {', '.join(SERVED)}")
  names = [RECOMMENDER.name]
  _check_head(path, config.recommender.head, name)
  if name != "blend":
    model = load_recommender(path, config)
    if name in GENERATED:
      model = GENERATED[name](model, config.evaluation.beams)
  else:
    refreshed = read_refreshed(path)
    model = load_blend(path, config, refreshed)
    names += [BLEND.name, REFRESHED] if refreshed else [BLEND.name]
  return LoadedModel(model, [path / f"{name}.safetensors" for name in names])


def _check_head(path: pathlib.Path, head: str, model: str) -> None:
  """Raises UserError for a model that was not trained."""
  trained = {"rank": ("network", "blend"), "generate": ("generated",)}.get(head, SERVED)
  if model not in trained:
    raise UserError(
      f"{path}: was trained with recommender.head={head}, without {model!r}; expected "
      f"{' or '.join(trained)}, or train with head=both"
    )
