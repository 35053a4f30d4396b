"""Compiles the recommender's training step for TPUs on a machine without any.

libtpu holds their compiler and knows their topologies by name; a CPU is enough to run it.
"""

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
from mmesid_jax.data.packing import Packer
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.models.layers.attention import preferred_kernel
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.mesh import is_partitioned, make_mesh
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.planning import memory
from mmesid_jax.stages import recommender_stage
from mmesid_jax.training import optimizer
from mmesid_jax.training.step import initial_state_shapes, make_step

HOST_CHIPS = {"v4": (2, 2, 1), "v5e": (2, 2), "v5p": (2, 2, 1), "v6e": (2, 2)}  # a host's chips
# Without these libtpu asks a cloud server which machine this is, and only one process may load it.
LIBTPU_ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


class CompiledStep(NamedTuple):
  """A step as the compiler for TPUs sees it.

  attention: the kind that it has. bytes: memory of a device by what it is for, without the cores'
  own memory; {} where the step does not fit. refusal: then the compiler's message.
  """

  attention: str
  bytes: Mapping[str, int]
  refusal: str = ""


def check_compiler(kind: str) -> None:
  """Raises UserError for a kind of device that is not a TPU, and without libtpu."""
  if kind not in HOST_CHIPS:
    raise UserError(f"--compile: {kind} is no TPU; known: {', '.join(HOST_CHIPS)}")
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("--compile: needs the compiler for TPUs; pip install 'mmesid_jax[tpu]'")


def smallest_topology(kind: str, devices: int) -> str:
  """The name of the smallest topology with at least that many devices, as "v5e:4x4"."""
  sides = [*HOST_CHIPS[kind]]
  while math.prod(sides) < devices:
    sides[sides.index(min(sides))] *= 2
  return f"{kind}:{'x'.join(map(str, sides))}"


def make_tpu_mesh(kind: str, shape: Mapping[str, int]) -> Mesh:
  """A mesh of TPUs for which programs can be compiled but not run."""
  count = math.prod(shape.values())
  for name, answer in LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(name, answer)
  options = {"chip_config_name": "megacore"} if kind == "v4" else {}  # a chip is one device
  found = topologies.get_topology_desc(smallest_topology(kind, count), "tpu", **options)
  return make_mesh(**shape, devices=found.devices[:count])


def lower_step(
  config: ConfigDict, dataset: Dataset, widths: Mapping[str, int], layout: Layout
) -> jax.stages.Lowered:
  """The training step on the mesh of the context, from `make_tpu_mesh`; layout: that of its
  batches. Raises UserError where the mesh does not divide the model."""
  c = config.recommender
  model = memory.model_shapes(config, dataset.num_items + 1, widths, attention=c.backbone.attention)
  place_model(model)
  graph, params, frozen = nnx.split(model, nnx.Param, ...)
  learner = optimizer.make_optimizer(c.optimizer, 2)  # the steps are a constant of the program
  state = initial_state_shapes(params, learner)
  step = make_step(
    recommender_stage.recommender_loss(c, popularity(dataset)),
    learner,
    graph,
    config.seed,
    microbatches=c.microbatches,
    state_shardings=sharding.shardings_of(state) if is_partitioned() else None,
  )
  microbatches = (c.microbatches,) if c.microbatches > 1 else ()

  def of_batch(x):
    return jax.ShapeDtypeStruct((*microbatches, *x.shape), x.dtype)

  batch = sharding.device_put_batch(jax.tree.map(of_batch, Packer(layout).batch()))
  return step.lower(state, frozen, batch)


def compile_step(
  config: ConfigDict, dataset: Dataset, widths: Mapping[str, int], layout: Layout
) -> CompiledStep:
  """Compiles what `lower_step` gives: minutes for billions of parameters. Raises UserError as it
  does."""
  c = config.recommender.backbone
  attention = c.attention
  if attention == "auto":
    attention = preferred_kernel("tpu", c.compute, config.recommender.head_width)
  program = lower_step(config, dataset, widths, layout)
  try:
    found = program.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return CompiledStep(attention, {}, str(error))
  return CompiledStep(
    attention,
    {
      "arguments": found.argument_size_in_bytes,
      "results beside them": found.output_size_in_bytes - found.alias_size_in_bytes,
      "temporaries": found.temp_size_in_bytes,
      "program": found.generated_code_size_in_bytes,
    },
  )
