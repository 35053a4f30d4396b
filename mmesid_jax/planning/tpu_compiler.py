"""The recommender's training step compiled for TPUs that are not there: libtpu holds their compiler
and knows their topologies by name, and a CPU is enough to run it."""

import importlib.util
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmesid_jax.data.dataset import Dataset, popularity
from mmesid_jax.data.packing import Layout, Packer
from mmesid_jax.errors import UserError
from mmesid_jax.models.layers.attention import preferred_kernel
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.mesh import is_partitioned, make_mesh
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.planning import memory
from mmesid_jax.stages import recommender_stage
from mmesid_jax.training import optimizer
from mmesid_jax.training.step import initial_state_shapes, make_step

SMALLEST = {"v4": (2, 2, 1), "v5e": (2, 2), "v5p": (2, 2, 1), "v6e": (2, 2)}  # a host's chips
# Else libtpu asks a server of the cloud what machine this is, and one process alone may load it.
ANSWERS = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


class Compiled(NamedTuple):
  """Of a step the kind of attention that it has, and the memory of a device in bytes, by what it is
  for, as the compiler counts it: what it keeps in the cores' own is not among it. Or no bytes, and
  the compiler's line about what does not fit."""

  attention: str
  bytes: Mapping[str, int]
  refusal: str = ""


def check(kind: str) -> None:
  """Raises UserError for a kind of device that is no TPU, and without libtpu."""
  if kind not in SMALLEST:
    raise UserError(f"--compile: {kind} is no TPU; known: {', '.join(SMALLEST)}")
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("--compile: needs the compiler for TPUs; pip install 'jax[tpu]'")


def topology(kind: str, devices: int) -> str:
  """The name of the smallest that has so many: v5e:4x4."""
  sides = [*SMALLEST[kind]]
  while math.prod(sides) < devices:
    sides[sides.index(min(sides))] *= 2
  return f"{kind}:{'x'.join(map(str, sides))}"


def mesh(kind: str, shape: Mapping[str, int]) -> Mesh:
  """Of TPUs that programs can be compiled for, and nothing else."""
  count = math.prod(shape.values())
  for name, answer in ANSWERS.items():
    os.environ.setdefault(name, answer)
  options = {"chip_config_name": "megacore"} if kind == "v4" else {}  # a chip is one device
  found = topologies.get_topology_desc(topology(kind, count), "tpu", **options)
  return make_mesh(**shape, devices=found.devices[:count])


def lowered(
  config: ConfigDict, dataset: Dataset, widths: Mapping[str, int], layout: Layout
) -> jax.stages.Lowered:
  """The step as training has it on the mesh of the context, which is one of `mesh`; layout: of its
  batches. Raises UserError where the mesh does not divide the model."""
  c = config.recommender
  model = memory.shapes(config, dataset.num_items + 1, widths, attention=c.backbone.attention)
  place_model(model)
  graph, params, frozen = nnx.split(model, nnx.Param, ...)
  learner = optimizer.make_optimizer(c.optimizer, 2)  # the number of steps is a constant of the program
  state = initial_state_shapes(params, learner)
  step = make_step(
    recommender_stage.recommender_loss(c, popularity(dataset)),
    learner,
    graph,
    config.seed,
    microbatches=c.microbatches,
    state_shardings=sharding.shardings_of(state) if is_partitioned() else None,
  )
  several = (c.microbatches,) if c.microbatches > 1 else ()

  def of_batch(x):
    return jax.ShapeDtypeStruct((*several, *x.shape), x.dtype)

  batch = sharding.device_put_batch(jax.tree.map(of_batch, Packer(layout).batch()))
  return step.lower(state, frozen, batch)


def compiled(
  config: ConfigDict, dataset: Dataset, widths: Mapping[str, int], layout: Layout
) -> Compiled:
  """What `lowered` takes; minutes for a model of billions. Raises UserError as it does."""
  c = config.recommender.backbone
  attention = c.attention
  if attention == "auto":
    attention = preferred_kernel("tpu", c.compute, config.recommender.head_width)
  program = lowered(config, dataset, widths, layout)
  try:
    found = program.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return Compiled(attention, {}, str(error))
  return Compiled(
    attention,
    {
      "arguments": found.argument_size_in_bytes,
      "results beside them": found.output_size_in_bytes - found.alias_size_in_bytes,
      "temporaries": found.temp_size_in_bytes,
      "program": found.generated_code_size_in_bytes,
    },
  )
