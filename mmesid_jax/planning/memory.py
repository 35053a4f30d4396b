"""The memory that the recommender stage takes on each device of a mesh, from shapes alone.

The mesh of the context may be a shape without devices (`mesh.use_mesh_shape`). Nothing is
allocated.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.config.schema import code_tokens
from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.losses.next_item import chunk_size
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.placement import flat_name, place_model
from mmesid_jax.parallel.variables import Frozen, LoRAParam, Pretrained
from mmesid_jax.planning.activations import Activations, activation_bytes
from mmesid_jax.quantize.id_trie import IdTrie
from mmesid_jax.quantize.item_ids import ItemIds
from mmesid_jax.stages import recommender_stage
from mmesid_jax.training import optimizer
from mmesid_jax.training.step import initial_state_shapes


def model_widths(config: ConfigDict, widths: Mapping[str, int]) -> dict[str, int]:
  """modality -> columns of its table as the model has it, from those of its file."""
  return {m: min(V, config.recommender.whiten or V) for m, V in widths.items()}


def model_shapes(
  config: ConfigDict,
  rows: int,
  widths: Mapping[str, int],
  *,
  parts: int = 1,
  attention: str = "xla",
) -> RecommenderModel:
  """The model of a resolved configuration, as shapes.

  Args:
    rows: rows of the item tables.
    widths: modality -> columns of its table.
    parts: the number of devices that share the heads and the mlp; the model has one device's share.
    attention: the kind of attention; every machine can trace XLA's.
  """
  c = config.recommender.copy_and_resolve_references()
  c.backbone.attention = attention
  c.heads, c.kv_heads, c.mlp_width = (n // parts for n in (c.heads, c.kv_heads, c.mlp_width))
  quantizer = config.semantic_ids.quantizer
  coded = widths if c.codes != "none" else ()

  def table_shapes(modalities, shape, dtype="float32"):
    return {m: jax.ShapeDtypeStruct(shape(m), dtype) for m in modalities}

  def make(features, codes, codebooks):
    tables = {"features": features, "codes": codes, "codebooks": codebooks}
    # a few items share their codes, and get a number
    sizes = (quantizer.codes,) * code_tokens(config) + (2,)
    ids = ItemIds(jnp.zeros((rows, len(sizes)), jnp.int32), sizes, 0)
    trie = largest_trie(rows - 1, sizes)
    return recommender_stage.init_recommender(
      c, config.seed, **tables, counts_I=np.ones(rows, np.int64), ids=(ids, trie)
    )

  return nnx.eval_shape(
    make,
    table_shapes(widths, lambda m: (rows, widths[m])),
    table_shapes(coded, lambda m: (rows, quantizer.levels), "int32"),
    table_shapes(coded, lambda m: (quantizer.levels, quantizer.codes, c.width)),
  )


def largest_trie(items: int, sizes: Sequence[int]) -> IdTrie:
  """The arrays of the largest trie of this many items."""
  nodes = [1]
  for size in sizes[:-1]:
    nodes.append(min(nodes[-1] * size, items))
  nodes.append(items)
  first_child = tuple(jnp.zeros(n + 1, jnp.int32) for n in nodes[:-1])
  codes = tuple(jnp.zeros(n, jnp.int32) for n in nodes[1:])
  path = jnp.zeros((items + 1, len(nodes)), jnp.int32)
  return IdTrie(first_child, codes, jnp.zeros(items, jnp.int32), path, tuple(sizes))


def bytes_per_device(model: RecommenderModel, c: ConfigDict) -> dict[str, int]:
  """Bytes that a device holds between and during steps, by what they are for.

  model: shapes, which are placed on the mesh in place. c: config.recommender. Raises UserError
  where the mesh does not divide the model.
  """
  place_model(model)
  params = nnx.state(model, nnx.Param)
  learner = optimizer.make_optimizer(c.optimizer, 2)  # its memory does not depend on the steps
  return {
    "frozen backbone": device_bytes(nnx.state(model, Pretrained)),
    "LoRA": device_bytes(nnx.state(model, LoRAParam)),
    "other trained parameters": device_bytes(
      nnx.state(model, nnx.All(nnx.Param, nnx.Not(LoRAParam)))
    ),
    # with microbatches: their sum, and that of the current one
    "gradient": (2 if c.microbatches > 1 else 1) * device_bytes(params),
    "AdamW's moments": device_bytes(initial_state_shapes(params, learner)["optimizer"]),
    "tables": device_bytes(nnx.state(model, nnx.All(Frozen, nnx.Not(Pretrained)))),
  }


def gathered_bytes(model: RecommenderModel) -> int:
  """Bytes of weights that fsdp divides and that are whole while they are used, in a model that
  `bytes_per_device` has placed: those of a layer, or of the item encoder with their gradient,
  whichever are more."""
  times = sharding.shard_count("embed")
  a_layer = encoder = 0
  for path, variable in nnx.to_flat_state(nnx.state(model)) if times > 1 else ():
    value = variable.get_value()
    if "embed" in sharding.logical_axes(flat_name(path), value.ndim):
      whole = times * device_bytes(value)
      if path[0] == "backbone":
        a_layer += whole // model.backbone.config.layers
      else:
        encoder += 2 * whole
  return max(a_layer, encoder)


class Share(NamedTuple):
  """One device's share of a step.

  rows: of the tables. parts: the number of devices that share the heads. layout: its part of a
  batch. chunk: items whose scores it holds at a time; 0 = all of its own.
  """

  rows: int
  parts: int
  layout: Layout
  chunk: int


def share_of_one_device(rows: int, layout: Layout, softmax_chunk: int = 0) -> Share:
  """One device's share on the mesh of the context.

  rows, layout, softmax_chunk: the tables' rows, a batch and config.recommender.softmax_chunk of all
  devices.
  """
  items = _part(layout.item_places + 1, "batch") - 1
  batch = dataclasses.replace(
    layout,
    rows=_part(layout.rows, "batch"),
    targets=_part(layout.targets, "targets"),
    items=max(items, 1),  # 0 would be as many as tokens
  )
  # As in training, the whole batch and all items decide whether there are chunks.
  chunk = chunk_size(layout.targets, rows, softmax_chunk)
  rows = max(_part(rows, "items"), 2)  # where there are more devices than items, one item each
  return Share(rows, sharding.shard_count("heads"), batch, chunk)


def trace_activations(config: ConfigDict, widths: Mapping[str, int], share: Share) -> Activations:
  """Activations of one device: the loss is traced with its share of items, heads and batch, and
  XLA's attention; the kernels of GPUs and TPUs hold less."""
  model = model_shapes(config, share.rows, widths, parts=share.parts)
  c = config.recommender.copy_and_resolve_references()
  c.softmax_chunk = share.chunk
  loss = recommender_stage.recommender_loss(c, np.ones(share.rows, np.int64))
  return activation_bytes(loss, model, Packer(share.layout).batch())


def _part(size: int, axis: str) -> int:
  return -(-size // sharding.shard_count(axis))


def device_bytes(tree) -> int:
  """Bytes on a device of shapes with a sharding, or on a single device."""

  def local(x):
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)

  return sum(math.prod(local(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
