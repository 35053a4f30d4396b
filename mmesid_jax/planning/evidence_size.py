"""The memory that the stages counts, content and blend take, from shapes alone."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.files.artifact import strip_prefix
from mmesid_jax.models.evidence import EvidenceModel
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.planning.memory import device_bytes
from mmesid_jax.stages.blend_stage import BLEND
from mmesid_jax.stages.evidence_scores import KEPT_TABLES
from mmesid_jax.stages.evidence_stages import (
  CONTENT,
  COUNTS,
  RECENCIES,
  WEIGHTS,
  make_model,
  width_options,
)

Tensors = dict[str, jax.ShapeDtypeStruct]


class EvidenceSize(NamedTuple):
  """Bytes, each 0 where the stages do not run.

  search: of each device, at most, while counts or content chooses its settings. model: of each
  device in the blend, beside the network. artifact: of the file of the last of the stages.
  """

  search: int
  model: int
  artifact: int


def evidence_size(config: ConfigDict, rows: int, widths: Mapping[str, int]) -> EvidenceSize:
  """The bytes on the mesh of the context. Where the search chooses a width, it is the largest.

  Args:
    rows: rows of the item tables.
    widths: modality -> columns of its file's table.
  """
  named = {s.name for s in (COUNTS, CONTENT, BLEND)}.intersection(config.stages)
  if not named:
    return EvidenceSize(0, 0, 0)
  with_content = named != {COUNTS.name} and CONTENT.applies(config)
  content = {m: widths[m] for m in CONTENT.content_modalities(config)} if with_content else {}
  tensors = _artifact_tensors(config, rows, content)
  model = model_shapes(tensors)
  place_model(model)
  return EvidenceSize(
    _search_bytes(tensors, rows, content), device_bytes(nnx.state(model)), _bytes(tensors)
  )


def model_shapes(tensors: Tensors) -> EvidenceModel:
  """The model of an artifact's tensors, as shapes."""
  settings = {name: values[0] for name, values in COUNTS.OPTIONS.items()}
  for m in strip_prefix(tensors, "unit."):
    settings |= {f"{m}.recency": RECENCIES[0], f"{m}.weight": WEIGHTS[0]}
  return nnx.eval_shape(lambda tensors: make_model(tensors, settings), tensors)


def _artifact_tensors(config: ConfigDict, rows: int, content: Mapping[str, int]) -> Tensors:
  """The tensors of counts.safetensors or content.safetensors. content: modality -> columns."""

  def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, np.dtype(dtype))

  K = config.counts.followers
  tensors = {"follower": shape(rows, K, dtype="int32"), "count": shape(rows, K)}
  tensors |= {"share": shape(rows), "trend": shape(rows)}
  for m, V in content.items():
    W = max(width_options(V))
    tensors[f"unit.{m}"] = shape(rows, W)
    tensors[f"whitening.{m}.mean"] = shape(V, dtype="float64")
    tensors[f"whitening.{m}.map"] = shape(V, W, dtype="float64")
  return tensors


def _search_bytes(tensors: Tensors, rows: int, content: Mapping[str, int]) -> int:
  """Bytes of the tables of `SettingsRanks`, which every device holds whole."""
  transitions = _bytes({name: tensors[name] for name in ("follower", "count")}) + 4 * rows
  priors = _bytes({name: tensors[name] for name in ("share", "trend")})
  directions = 4 * rows * sum(sum(width_options(V)) for V in content.values())
  # a table is made before the one that it replaces is dropped
  return (KEPT_TABLES + 1) * transitions + priors + directions


def _bytes(tensors: Tensors) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in tensors.values())
