"""Plans of the recommender stage on meshes of devices, from shapes alone: memory and time."""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.models import flops
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.devices import Device
from mmesid_jax.parallel.mesh import use_mesh_shape
from mmesid_jax.parallel.mesh_axes import MESH_AXES
from mmesid_jax.planning import memory, tpu_compiler
from mmesid_jax.planning.activations import Activations
from mmesid_jax.planning.evidence_size import EvidenceSize, evidence_size
from mmesid_jax.planning.tpu_compiler import CompiledStep
from mmesid_jax.stages import recommender_stage
from mmesid_jax.stages.recommender_stage import RECOMMENDER

FITS = 0.9  # of the memory; the rest is for the runtime and lost between buffers
NETWORK = ("frozen backbone", "LoRA", "other trained parameters", "tables")  # also after training


class Epoch(NamedTuple):
  """An epoch of training: tokens and targets, batches of a layout, operations."""

  tokens: int
  targets: int
  layout: Layout
  batches: int
  flops: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """Memory and time of the recommender stage on one mesh.

  bytes: on each device, by what they are for. evidence: of the stages that count and compare.
  memory: bytes of a device. rate: operations per second of all devices together.
  """

  mesh: Mapping[str, int]
  bytes: Mapping[str, int]
  evidence: EvidenceSize
  epoch: Epoch
  steps: int
  memory: float
  rate: float

  @property
  def total(self) -> int:
    """Bytes on each device while the recommender is trained."""
    return sum(self.bytes.values())

  @property
  def blend(self) -> int:
    """Bytes of network and evidence on each device, where both are served."""
    return sum(self.bytes[part] for part in NETWORK) + self.evidence.model

  @property
  def fits(self) -> bool:
    """Whether every stage does."""
    return max(self.total, self.evidence.search, self.blend) <= FITS * self.memory

  @property
  def epoch_seconds(self) -> float:
    return self.epoch.flops / self.rate

  @property
  def step_seconds(self) -> float:
    return self.epoch_seconds / self.steps


def possible_meshes(devices: int) -> Iterator[dict[str, int]]:
  """The sensible meshes of a number of devices: all on fsdp, data times fsdp, and 2, 4 or 8 on
  tensor times fsdp."""
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  shapes = [(data, devices // data, 1) for data in divisors]
  shapes += [(1, devices // tensor, tensor) for tensor in (2, 4, 8) if tensor in divisors]
  return (dict(zip(MESH_AXES, shape, strict=True)) for shape in shapes)


class Planner:
  """Plans of one configuration on one kind of device.

  widths: modality -> columns of its file's table. mfu: the assumed share of the devices' peak.
  rows_per_device: rows of a batch for each device that shares them; None = as config says.
  """

  def __init__(
    self,
    config: ConfigDict,
    device: Device,
    dataset: Dataset,
    widths: Mapping[str, int],
    mfu: float,
    rows_per_device: int | None,
  ):
    self._config, self._device, self._dataset = config, device, dataset
    self._file_widths, self._widths = widths, memory.model_widths(config, widths)
    self._mfu, self._rows_per_device = mfu, rows_per_device
    self._epochs: dict[int, Epoch] = {}  # by rows
    self._activations: dict[memory.Share, Activations] = {}

  def plan(self, mesh: Mapping[str, int]) -> Plan:
    """The plan of a mesh. Raises UserError where the mesh does not divide the model or a batch."""
    with use_mesh_shape(mesh):
      config = self._scaled_config()
      c = config.recommender
      RECOMMENDER.check(config)
      sharding.check_divides("--config.evaluation.targets", config.evaluation.targets, "targets")
      rows = self._dataset.num_items + 1
      model = memory.model_shapes(config, rows, self._widths)
      bytes_held = memory.bytes_per_device(model, c)
      epoch = self._epoch(config)
      share = memory.share_of_one_device(rows, epoch.layout, c.softmax_chunk)
      gathered = memory.gathered_bytes(model)
      evidence = evidence_size(config, rows, self._file_widths)
    if share not in self._activations:  # traced for one device, so without the mesh
      self._activations[share] = memory.trace_activations(config, self._widths, share)
    kept, transient = self._activations[share]
    bytes_held |= {"activations kept": kept, "most beside them": transient}
    bytes_held["weights gathered"] = gathered
    return Plan(
      mesh=mesh,
      bytes=bytes_held,
      evidence=evidence,
      epoch=epoch,
      steps=-(-epoch.batches // c.microbatches),
      memory=self._device.memory,
      rate=math.prod(mesh.values()) * self._device.peak * self._mfu,
    )

  def plans(self, devices: int) -> tuple[list[Plan], dict[str, list[Mapping[str, int]]]]:
    """The plans of all possible meshes, and reason -> meshes that have none."""
    plans, refused = [], {}
    for mesh in possible_meshes(devices):
      try:
        plans.append(self.plan(mesh))
      except UserError as error:
        refused.setdefault(str(error), []).append(mesh)
    return plans, refused

  def compile(self, kind: str, mesh: Mapping[str, int]) -> tuple[CompiledStep, float]:
    """A step on the mesh, compiled for TPUs, and the seconds that it took: minutes for billions of
    parameters."""
    with jax.set_mesh(tpu_compiler.make_tpu_mesh(kind, mesh)):
      config = self._scaled_config()
      layout = self._epoch(config).layout
      start = time.monotonic()
      step = tpu_compiler.compile_step(config, self._dataset, self._widths, layout)
    return step, time.monotonic() - start

  def _scaled_config(self) -> ConfigDict:
    """The configuration with the rows and targets for the mesh of the context."""
    if self._rows_per_device is None:
      return self._config
    config = self._config.copy_and_resolve_references()
    c = config.recommender
    rows = self._rows_per_device * sharding.shard_count("batch")
    c.rows, c.targets = rows, max(c.targets * rows // c.rows, 1)
    return config

  def _epoch(self, config: ConfigDict) -> Epoch:
    """An epoch as training packs it. Raises UserError for a data set that trains nothing."""
    c = config.recommender
    if c.rows not in self._epochs:
      batches, counts = recommender_stage.make_batches(config, self._dataset)
      if not len(batches.pieces):
        raise UserError("recommender: no user has enough items before the held-out ones")
      model = memory.model_shapes(config, self._dataset.num_items + 1, self._widths)
      number = operations = 0
      for packer in batches.first_epoch():
        window = model.backbone.config.window
        work = flops.useful_work(packer.batch(), c.prompt.length, window)
        number += 1
        operations += flops.recommender_flops(model, work, ranks=c.head != "generate")
      pieces, layout = batches.pieces, batches.layout
      tokens = layout.tokens(pieces.stop - pieces.start, pieces.stop - pieces.first_target).sum()
      self._epochs[c.rows] = Epoch(int(tokens), counts.targets, layout, number, operations)
    return self._epochs[c.rows]
