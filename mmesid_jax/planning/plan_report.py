"""What the command `plan` does: says, from shapes alone, whether the recommender stage of a
configuration fits on a kind of device, how long it would take, and on which meshes."""

import dataclasses
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mmesid_jax.config.checks import check_values
from mmesid_jax.config.command_line import nearest_name
from mmesid_jax.config.schema import MESH_AXES, modalities, split_at
from mmesid_jax.data import dataset as datasets
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.features import feature_width
from mmesid_jax.data.packing import Layout
from mmesid_jax.errors import UserError
from mmesid_jax.models import flops
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.devices import DEVICES, Device
from mmesid_jax.parallel.mesh import mesh_shape, use_mesh_shape
from mmesid_jax.planning import memory as footprint
from mmesid_jax.planning import tpu_compiler
from mmesid_jax.planning.activations import Activations
from mmesid_jax.stages import backbone, recommender_stage, sequence_task
from mmesid_jax.stages.workdir import feature_dir, plain_data_dir

FITS = 0.9  # of the memory; the rest is the runtime's, and lost between buffers
JAX_TAKES = 0.75  # of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
GIB = 2**30


def run(
  config: ConfigDict,
  kind: str,
  *,
  devices: Sequence[str],
  mfu: float,
  rows_a_device: int | None,
  compiled: bool = False,
) -> None:
  """Prints what config.mesh takes on the first of the numbers of devices, and what other meshes
  take on all of them. Nothing is written, no weight allocated, no accelerator used; of a checkpoint
  config.json and the tokenizer are read. rows_a_device: the rows of a batch grow with the devices
  that share them, and its targets with the rows. compiled: of the first mesh also what the compiler
  for TPUs says.

  Raises UserError for a kind or number of devices that is none, a configuration out of range, data
  that is not there, where the first mesh does not divide what is to lie on it, and where what is to
  be compiled is not for a TPU or libtpu is missing.
  """
  if kind not in DEVICES:
    near = [name for name in DEVICES if name.startswith(kind)] or [nearest_name(kind, [*DEVICES])]
    known = ", ".join(DEVICES)
    raise UserError(f"--device={kind}: did you mean {' or '.join(near)}? Known: {known}")
  if not 0 < mfu <= 1:
    raise UserError(f"--mfu={mfu}: expected a number in (0, 1]")
  if rows_a_device is not None and rows_a_device < 1:
    raise UserError(f"--rows_per_device={rows_a_device}: expected a number >= 1")
  counts = [_count(text) for text in devices]
  if compiled:
    tpu_compiler.check(kind)
  jax.config.update("jax_platforms", "cpu")
  estimated = backbone.resolve_sizes(config, estimate=True)
  check_values(config)
  backbone.check_storage(config.recommender)
  dataset, widths = _data(config)
  planner = Planner(config, DEVICES[kind], dataset, widths, mfu, rows_a_device)
  mesh = mesh_shape(config.mesh, counts[0])
  first = planner.plan(mesh)
  print(_assumed(config, kind, dataset, widths, mfu, estimated))
  print(f"\n{first.details()}", flush=True)
  if compiled:
    print(f"\n{planner.compiled(kind, mesh)}")
  print(f"\n{HEAD}")
  for count in counts:
    print("\n".join(planner.lines(count)), flush=True)


def meshes(devices: int) -> Iterator[dict[str, int]]:
  """The sensible meshes of so many devices: all on fsdp, data times fsdp, and 2, 4 or 8 on tensor
  times fsdp."""
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  found = [(data, devices // data, 1) for data in divisors]
  found += [(1, devices // tensor, tensor) for tensor in (2, 4, 8) if tensor in divisors]
  return (dict(zip(MESH_AXES, shape, strict=True)) for shape in found)


def _count(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise UserError(f"--devices: {text!r} is not a number of devices >= 1")
  return int(text)


def _data(config: ConfigDict) -> tuple[Dataset, dict[str, int]]:
  """The data set and the width of every feature table as the model has it; what `data_dir` writes
  is in a folder that is gone afterwards. Raises UserError."""
  with tempfile.TemporaryDirectory() as temporary:
    folder = plain_data_dir(config, pathlib.Path(temporary))
    tables = feature_dir(config, folder)
    dataset, widths = datasets.read_dataset(folder, split_at(config)), {}
    for modality in modalities(config):
      source = config.features[modality]
      if source == "stage":
        width = config.collaborative.width
      else:
        width = feature_width(tables / source, dataset.num_items)
      widths[modality] = min(width, config.recommender.whiten or width)
  return dataset, widths


class Epoch(NamedTuple):
  """Its tokens and targets; the layout and number of its batches, and all their operations."""

  tokens: int
  targets: int
  layout: Layout
  batches: int
  flops: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """Of one mesh: its shape; bytes on every device by what they are for; the epoch, and its steps;
  memory of a device, operations a second of all of them."""

  mesh: Mapping[str, int]
  bytes: Mapping[str, int]
  epoch: Epoch
  steps: int
  memory: float
  rate: float

  @property
  def total(self) -> int:
    return sum(self.bytes.values())

  @property
  def verdict(self) -> str:
    return "yes" if self.total <= FITS * self.memory else "no"

  @property
  def seconds(self) -> float:
    """Of an epoch."""
    return self.epoch.flops / self.rate

  def details(self) -> str:
    """A table of the bytes, and what a step and an epoch take."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in self.mesh.items())
    e, steps = self.epoch, self.steps
    b = e.layout
    lines = [
      f"Mesh of {mesh}; a batch: {b.rows} rows of {b.row_length}, {b.targets} targets",
      f"{'':28}GiB a device",
      *(f"{name:28}{size / GIB:12.3f}" for name, size in self.bytes.items()),
      f"{'sum':28}{self.total / GIB:12.3f}",
      f"{'memory':28}{self.memory / GIB:12.3f}  fits: {self.verdict}",
      f"A step: {e.flops / steps / 1e12:,.4g} TFLOP, {_seconds(self.seconds / steps)}. An epoch: "
      f"{steps:,} steps, {e.targets:,} targets, {e.tokens:,} tokens, {e.flops / 1e15:,.4g} PFLOP, "
      f"{_seconds(self.seconds)}.",
    ]
    return "\n".join(lines)


HEAD = (
  "devices  data  fsdp tensor  rows   frozen  learning  tables  activations  GiB a device  fits"
  "     step     epoch"
)


class Planner:
  """Plans of one configuration on one kind of device."""

  def __init__(
    self,
    config: ConfigDict,
    device: Device,
    dataset: Dataset,
    widths: Mapping[str, int],
    mfu: float,
    rows_a_device: int | None,
  ):
    self._config, self._device, self._dataset, self._widths = config, device, dataset, widths
    self._mfu, self._rows_a_device = mfu, rows_a_device
    self._epochs: dict[int, Epoch] = {}  # by rows
    self._traced: dict[tuple, Activations] = {}

  def plan(self, mesh: Mapping[str, int]) -> Plan:
    """Raises UserError where the mesh does not divide what lies on it."""
    with use_mesh_shape(mesh):
      config = self._scaled()
      c = config.recommender
      sequence_task.check_batch_divides("recommender", c)
      sharding.check_divides("--config.evaluation.targets", config.evaluation.targets, "targets")
      rows = self._dataset.num_items + 1
      model = footprint.shapes(config, rows, self._widths)
      bytes_ = footprint.held(model, c)
      epoch = self._epoch(config)
      key = footprint.one_device(rows, epoch.layout)
      weights = footprint.gathered(model)
    if key not in self._traced:  # of one device, so without the mesh
      self._traced[key] = footprint.traced(config, self._widths, *key)
    found = self._traced[key]
    bytes_ |= {"activations kept": found.kept, "most beside them": found.transient}
    bytes_["weights gathered"] = weights
    devices = math.prod(mesh.values())
    return Plan(
      mesh=mesh,
      bytes=bytes_,
      epoch=epoch,
      steps=-(-epoch.batches // c.microbatches),
      memory=self._device.memory,
      rate=devices * self._device.peak * self._mfu,
    )

  def lines(self, devices: int) -> list[str]:
    """Of the table below HEAD, for all `meshes` of so many devices: a plan each, then why others
    have none, meshes of one reason in one line."""
    found, reasons = [], {}
    for mesh in meshes(devices):
      try:
        found.append(_line(self.plan(mesh)))
      except UserError as error:
        reasons.setdefault(str(error), []).append(" x ".join(map(str, mesh.values())))
    return found + [f"{devices:7}  not {', '.join(which)}: {why}" for why, which in reasons.items()]

  def compiled(self, kind: str, mesh: Mapping[str, int]) -> str:
    """What the compiler for TPUs says of a step on the mesh, in words; it takes minutes."""
    with jax.set_mesh(tpu_compiler.mesh(kind, mesh)):
      config = self._scaled()
      layout = self._epoch(config).layout
      start = time.monotonic()
      found = tpu_compiler.compiled(config, self._dataset, self._widths, layout)
    size = math.prod(mesh.values())
    where = f"{size} of {tpu_compiler.topology(kind, size)}, attention: {found.attention}"
    took = f"{_seconds(time.monotonic() - start)} to compile"
    if found.refusal:
      return f"The compiler for TPUs ({where}) refuses: {found.refusal}"
    lines = [f"By the compiler for TPUs ({where}; {took})", f"{'':28}GiB a device"]
    lines += [f"{name:28}{size / GIB:12.3f}" for name, size in found.bytes.items()]
    return "\n".join([*lines, f"{'sum':28}{sum(found.bytes.values()) / GIB:12.3f}"])

  def _scaled(self) -> ConfigDict:
    """The configuration with the rows and targets that the context's mesh has."""
    if self._rows_a_device is None:
      return self._config
    config = self._config.copy_and_resolve_references()
    c = config.recommender
    rows = self._rows_a_device * sharding.shard_count("batch")
    c.rows, c.targets = rows, max(c.targets * rows // c.rows, 1)
    return config

  def _epoch(self, config: ConfigDict) -> Epoch:
    """As training packs it. Raises UserError."""
    c = config.recommender
    if c.rows not in self._epochs:
      batches, counts = recommender_stage.make_batches(config, self._dataset)
      if not len(batches.pieces):
        raise UserError("recommender: no user has enough items before the held-out ones")
      model = footprint.shapes(config, self._dataset.num_items + 1, self._widths)
      number = total = 0
      for packer in batches.first_epoch():
        work = flops.useful_work(packer.batch(), c.prompt.length)
        number, total = number + 1, total + flops.recommender_flops(model, work)
      pieces, layout = batches.pieces, batches.layout
      tokens = layout.tokens(pieces.stop - pieces.start, pieces.stop - pieces.first_target).sum()
      self._epochs[c.rows] = Epoch(int(tokens), counts.targets, layout, number, total)
    return self._epochs[c.rows]


def _line(plan: Plan) -> str:
  b = plan.bytes
  learning = ("LoRA", "other trained parameters", "gradient", "AdamW's moments")
  working = ("activations kept", "most beside them", "weights gathered")
  sums = [b["frozen backbone"], sum(b[x] for x in learning), b["tables"]]
  sums += [sum(b[x] for x in working), plan.total]
  gib = "".join(
    f"{size / GIB:{width}.2f}" for size, width in zip(sums, (9, 10, 8, 13, 14), strict=True)
  )
  times = f"{_seconds(plan.seconds / plan.steps):>10}{_seconds(plan.seconds):>10}"
  head = f"{math.prod(plan.mesh.values()):7}" + "".join(f"{n:6}" for n in plan.mesh.values())
  return f"{head}{plan.epoch.layout.rows:6}{gib}{plan.verdict:>6}{times}"


def _assumed(config, kind, dataset, widths, mfu, estimated) -> str:
  """What the figures stand on, in words."""
  c, device = config.recommender, DEVICES[kind]
  vectors = ", ".join(f"{m} {width}" for m, width in widths.items())
  lines = [
    f"{kind}: {device.memory / 1e9:.3g} GB = {device.memory / GIB:.1f} GiB, "
    f"{device.peak / 1e12:g} TFLOP/s of dense bf16 by its data sheet. "
    f"Fits: within {FITS:.0%} of the memory. Time: at an MFU of {mfu:.0%}, assumed (--mfu).",
    f"{len(dataset):,} users, {dataset.num_items:,} items, vectors: {vectors}. Llama of {c.layers} "
    f"layers, {c.width} wide, {c.backbone.kind}, kept as "
    f"{'float32' if c.backbone.kind == 'full' else c.backbone.weights}; activations "
    f"{c.backbone.compute}, remat {c.backbone.remat}.",
  ]
  if device.maker == "gpu":
    lines.append(
      f"jax takes {JAX_TAKES:.0%} of a GPU's memory unless told: for more, "
      f"XLA_PYTHON_CLIENT_MEM_FRACTION={FITS}."
    )
  if estimated:
    lines.append(
      f"Prompt: no tokenizer there, about {c.prompt.length} tokens before the items and "
      f"{c.prompt.response} behind."
    )
  return "\n".join(lines)


def _seconds(seconds: float) -> str:
  if seconds < 1:
    return f"{1e3 * seconds:.3g} ms"
  if seconds < 100:
    return f"{seconds:.3g} s"
  return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
