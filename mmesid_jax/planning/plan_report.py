"""The report of the command `plan`: what fits on a kind of device, and how long it takes."""

import math
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict

from mmesid_jax.config.checks import check_values
from mmesid_jax.config.command_line import nearest_name
from mmesid_jax.config.schema import modalities, split_at
from mmesid_jax.config.sizes import fit_sizes_to_data
from mmesid_jax.data.dataset import Dataset, read_dataset
from mmesid_jax.data.features import feature_width
from mmesid_jax.display import reporter
from mmesid_jax.display.table import format_table
from mmesid_jax.errors import UserError
from mmesid_jax.parallel.devices import DEVICES
from mmesid_jax.parallel.mesh import mesh_shape
from mmesid_jax.parallel.mesh_axes import MESH_AXES
from mmesid_jax.planning import tpu_compiler
from mmesid_jax.planning.memory import model_widths
from mmesid_jax.planning.planner import FITS, Plan, Planner
from mmesid_jax.stages import backbone
from mmesid_jax.stages.workdir import OWN_VECTORS, count_data, feature_dir, plain_data_dir

JAX_TAKES = 0.75  # of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
GIB = 2**30

# column -> the parts of Plan.bytes that it sums up
COLUMNS = {
  "frozen": ("frozen backbone",),
  "learning": ("LoRA", "other trained parameters", "gradient", "AdamW's moments"),
  "tables": ("tables",),
  "activations": ("activations kept", "most beside them", "weights gathered"),
}


def print_plan(
  config: ConfigDict,
  kind: str,
  *,
  devices: Sequence[str],
  mfu: float,
  rows_per_device: int | None,
  compiled: bool = False,
) -> None:
  """Prints what config.mesh takes on the first of the numbers of devices, and what other meshes
  take on all of them.

  Nothing is written, no weight allocated, no accelerator used. Of a checkpoint, config.json and the
  tokenizer are read.

  Args:
    kind: one of DEVICES.
    devices: numbers of devices, as text.
    mfu: the assumed share of the devices' peak.
    rows_per_device: rows of a batch for each device that shares them; targets grow with the rows.
    compiled: also compile a step of the first mesh for TPUs.

  Raises UserError for a kind or number of devices that does not exist, a configuration out of
  range, missing data, a first mesh that does not divide the model, and where `compiled` is asked
  for without a TPU kind or libtpu.
  """
  if kind not in DEVICES:
    near = [name for name in DEVICES if name.startswith(kind)] or [nearest_name(kind, [*DEVICES])]
    known = ", ".join(DEVICES)
    raise UserError(f"--device={kind}: did you mean {' or '.join(near)}? Known: {known}")
  if not 0 < mfu <= 1:
    raise UserError(f"--mfu={mfu}: expected a number in (0, 1]")
  if rows_per_device is not None and rows_per_device < 1:
    raise UserError(f"--rows_per_device={rows_per_device}: expected a number >= 1")
  counts = [_parse_count(text) for text in devices]
  if compiled:
    tpu_compiler.check_compiler(kind)
  jax.config.update("jax_platforms", "cpu")
  estimated = backbone.resolve_sizes(config, estimate=True)
  fit_sizes_to_data(config, count_data)
  check_values(config)
  backbone.check_storage(config.recommender)
  dataset, widths = _read_data(config)
  planner = Planner(config, DEVICES[kind], dataset, widths, mfu, rows_per_device)
  mesh = mesh_shape(config.mesh, counts[0])
  first = planner.plan(mesh)
  reporter.info(_assumptions(config, kind, dataset, widths, mfu, estimated))
  reporter.info(f"\n{_details(first)}")
  if compiled:
    reporter.info(f"\n{_compiler_report(planner, kind, mesh)}")
  reporter.info(f"\n{_meshes_table(planner, counts)}")


def _parse_count(text: str) -> int:
  if not re.fullmatch(r"[1-9][0-9]{0,5}", text):  # all meshes of a number are listed
    raise UserError(f"--devices: {text!r} is not a number of devices >= 1 and below a million")
  return int(text)


def _read_data(config: ConfigDict) -> tuple[Dataset, dict[str, int]]:
  """The data set, and the width of every feature table. Data that has to be made is made in a
  temporary folder. Raises UserError."""
  with tempfile.TemporaryDirectory() as temporary:
    folder = plain_data_dir(config, pathlib.Path(temporary))
    tables = feature_dir(config, folder)
    dataset, widths = read_dataset(folder, split_at(config)), {}
    for modality in modalities(config):
      source = config.features[modality]
      if source == OWN_VECTORS:
        widths[modality] = config.collaborative.width
      else:
        widths[modality] = feature_width(tables / source, dataset.num_items)
  return dataset, widths


def _details(plan: Plan) -> str:
  """A table of the bytes on a device, and what a step and an epoch take."""
  mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
  epoch, layout = plan.epoch, plan.epoch.layout
  rows = _byte_rows(plan.bytes)
  rows.append(("memory", f"{plan.memory / GIB:.3f}"))
  flops = epoch.flops / plan.steps
  return "\n".join(
    (
      f"Mesh of {mesh}; a batch: {layout.rows} rows of {layout.row_length}, "
      f"{layout.targets} targets; fits: {_yes_or_no(plan.fits)}",
      format_table(("", "GiB per device"), rows),
      f"A step: {flops / 1e12:,.4g} TFLOP, {_duration(plan.step_seconds)}. An epoch: "
      f"{plan.steps:,} steps, {epoch.targets:,} targets, {epoch.tokens:,} tokens, "
      f"{epoch.flops / 1e15:,.4g} PFLOP, {_duration(plan.epoch_seconds)}.",
      *_evidence_lines(plan),
    )
  )


def _evidence_lines(plan: Plan) -> list[str]:
  """The memory of the stages that count and compare, in words; none where none of them runs."""
  search, model, artifact = (f"{size / GIB:.3f} GiB" for size in plan.evidence)
  if not plan.evidence.search:
    return []
  return [
    f"Evidence: at most {search} per device while its settings are chosen, {model} in the blend, "
    f"with the network {plan.blend / GIB:.3f} GiB; {artifact} in a file."
  ]


def _compiler_report(planner: Planner, kind: str, mesh: Mapping[str, int]) -> str:
  """The memory of a step on the mesh as the compiler for TPUs counts it."""
  step, seconds = planner.compile(kind, mesh)
  size = math.prod(mesh.values())
  where = f"{size} of {tpu_compiler.smallest_topology(kind, size)}, attention: {step.attention}"
  if step.refusal:
    return f"The compiler for TPUs ({where}) refuses: {step.refusal}"
  head = f"By the compiler for TPUs ({where}; {_duration(seconds)} to compile)"
  return f"{head}\n{format_table(('', 'GiB per device'), _byte_rows(step.bytes))}"


def _byte_rows(sizes: Mapping[str, int]) -> list[tuple[str, str]]:
  rows = [(name, f"{size / GIB:.3f}") for name, size in sizes.items()]
  return [*rows, ("sum", f"{sum(sizes.values()) / GIB:.3f}")]


def _meshes_table(planner: Planner, counts: Sequence[int]) -> str:
  """All possible meshes of the numbers of devices, and the reasons of those that are not
  possible."""
  header = ("devices", *MESH_AXES, "rows", *COLUMNS, "GiB per device", "evidence", "fits")
  rows, refusals = [], []
  for count in counts:
    plans, refused = planner.plans(count)
    rows += [(count, *_cells(plan)) for plan in plans]
    for reason, meshes in refused.items():
      names = ", ".join(" x ".join(map(str, mesh.values())) for mesh in meshes)
      refusals.append(f"{count} devices, not {names}: {reason}")
  table = format_table((*header, "step", "epoch"), rows, text_columns=0)
  return "\n".join([table, *refusals])


def _cells(plan: Plan) -> list[object]:
  sizes = [sum(plan.bytes[part] for part in parts) for parts in COLUMNS.values()]
  gib = [f"{size / GIB:.2f}" for size in (*sizes, plan.total, plan.evidence.search)]
  times = (_duration(plan.step_seconds), _duration(plan.epoch_seconds))
  return [*plan.mesh.values(), plan.epoch.layout.rows, *gib, _yes_or_no(plan.fits), *times]


def _assumptions(
  config: ConfigDict,
  kind: str,
  dataset: Dataset,
  widths: Mapping[str, int],
  mfu: float,
  estimated: bool,
) -> str:
  """The assumptions of the figures, in words."""
  c, device = config.recommender, DEVICES[kind]
  vectors = ", ".join(f"{m} {width}" for m, width in model_widths(config, widths).items())
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
      f"jax takes {JAX_TAKES:.0%} of a GPU's memory by default; for more, set "
      f"XLA_PYTHON_CLIENT_MEM_FRACTION={FITS}."
    )
  if estimated:
    lines.append(
      f"Prompt: there is no tokenizer, so an estimate: about {c.prompt.length} tokens before the "
      f"items and {c.prompt.response} after them."
    )
  return "\n".join(lines)


def _yes_or_no(answer: bool) -> str:
  return "yes" if answer else "no"


def _duration(seconds: float) -> str:
  """Three significant digits, also below a second."""
  if seconds < 1:
    return f"{1e3 * seconds:.3g} ms"
  if seconds < 100:
    return f"{seconds:.3g} s"
  return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
