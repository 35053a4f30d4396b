"""What the recommender stage holds on every device of a mesh, from shapes alone: the mesh of the
context may be `sharding.without_devices`, and nothing is allocated."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.packing import Layout, Packer
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.placement import flat_name, place_model
from mmesid_jax.parallel.variables import Frozen, LoRAParam, Pretrained
from mmesid_jax.planning.activations import Activations, activations
from mmesid_jax.stages import recommender_stage
from mmesid_jax.training import optimizer
from mmesid_jax.training.step import initial_state_shapes


def shapes(
  config: ConfigDict,
  rows: int,
  widths: Mapping[str, int],
  *,
  parts: int = 1,
  attention: str = "xla",
) -> RecommenderModel:
  """The model of a resolved configuration as shapes, around tables of so many rows and, by
  modality, columns; with the heads and the mlp that one of `parts` devices has of them. attention:
  its `kind`; every machine can trace XLA's."""
  c = config.recommender.copy_and_resolve_references()
  c.backbone.checkpoint = ""  # its sizes are in c
  c.backbone.attention = attention
  c.heads, c.kv_heads, c.mlp_width = (n // parts for n in (c.heads, c.kv_heads, c.mlp_width))
  quantizer = config.semantic_ids.quantizer
  coded = widths if c.codes != "none" else ()

  def tables(modalities, shape, dtype="float32"):
    return {m: jax.ShapeDtypeStruct(shape(m), dtype) for m in modalities}

  def make(features, codes, codebooks):
    drawn = {"features": features, "codes": codes, "codebooks": codebooks}
    return recommender_stage.init_recommender(c, config.seed, **drawn, counts_I=np.ones(rows, np.int64))

  return nnx.eval_shape(
    make,
    tables(widths, lambda m: (rows, widths[m])),
    tables(coded, lambda m: (rows, quantizer.levels), "int32"),
    tables(coded, lambda m: (quantizer.levels, quantizer.codes, c.width)),
  )


def held(model: RecommenderModel, c: ConfigDict) -> dict[str, int]:
  """Bytes that a device holds between and during steps, by what they are for; c:
  config.recommender. The model, of shapes, is laid out in place. Raises UserError where the mesh
  does not divide it."""
  place_model(model)
  params = nnx.state(model, nnx.Param)
  learner = optimizer.make_optimizer(c.optimizer, 2)  # whose memory does not depend on the number of steps
  return {
    "frozen backbone": _bytes(nnx.state(model, Pretrained)),
    "LoRA": _bytes(nnx.state(model, LoRAParam)),
    "other trained parameters": _bytes(nnx.state(model, nnx.All(nnx.Param, nnx.Not(LoRAParam)))),
    # of several microbatches the sum, and that of the one at work
    "gradient": (2 if c.microbatches > 1 else 1) * _bytes(params),
    "AdamW's moments": _bytes(initial_state_shapes(params, learner)["optimizer"]),
    "tables": _bytes(nnx.state(model, nnx.All(Frozen, nnx.Not(Pretrained)))),
  }


def gathered(model: RecommenderModel) -> int:
  """Bytes of weights that fsdp cuts and that are whole while they are used, of a model that `held`
  laid out: a layer's, or those of the item encoder with their gradient, whichever are more."""
  times = sharding.shard_count("embed")
  a_layer = encoder = 0
  for path, variable in nnx.to_flat_state(nnx.state(model)) if times > 1 else ():
    value = variable.get_value()
    if "embed" in sharding.logical_axes(flat_name(path), value.ndim):
      whole = times * _bytes(value)
      if path[0] == "backbone":
        a_layer += whole // model.backbone.config.layers
      else:
        encoder += 2 * whole
  return max(a_layer, encoder)


def one_device(rows: int, layout: Layout) -> tuple[int, int, Layout]:
  """Rows of the tables that one device of the context's mesh has of so many, the devices that share
  the heads, and what is one device's of a batch."""
  items = _part(layout.item_places + 1, "batch") - 1
  batch = dataclasses.replace(
    layout,
    rows=_part(layout.rows, "batch"),
    targets=_part(layout.targets, "targets"),
    items=max(items, 1),  # 0 would be as many as tokens
  )
  return _part(rows, "items"), sharding.shard_count("heads"), batch


def traced(
  config: ConfigDict, widths: Mapping[str, int], rows: int, parts: int, layout: Layout
) -> Activations:
  """Activations of one device: the loss is traced at its own share of items, heads and batch, as
  `one_device` has them, with XLA's attention; the kernels of GPUs and TPUs hold less."""
  model = shapes(config, rows, widths, parts=parts)
  loss = recommender_stage.recommender_loss(config.recommender, np.ones(rows, np.int64))
  return activations(loss, model, Packer(layout).batch())


def _part(size: int, axis: str) -> int:
  return -(-size // sharding.shard_count(axis))


def _bytes(tree) -> int:
  """On a device, of shapes that say where they lie, or lie on one."""

  def local(x):
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)

  return sum(math.prod(local(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
