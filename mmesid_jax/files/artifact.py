"""Artifacts, which a stage leaves for the next, and other files that only the main process writes.

An artifact is a safetensors file with a JSON header, and can be read without this project. It holds
the digests of its header and of each tensor, which are compared whenever these are read.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.artifact_form import FORMS, find_fault, find_wrong_values
from mmesid_jax.files.atomic import atomic_file, refuse_folder
from mmesid_jax.files.digest import bytes_sha256
from mmesid_jax.files.readers import parse_json
from mmesid_jax.files.tensor_file import TYPES, TensorFile
from mmesid_jax.parallel.processes import main_only

SCHEMA = 2  # raised whenever the tensors of an artifact change their meaning
# Artifacts that no training stage writes -> the command that does.
MAKERS = {
  "new_items": "mmesid_jax.semantic_ids encode",
  "refreshed_counts": "mmesid_jax.refresh",
}


@main_only
def write_artifact(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> None:
  """Writes tensors and a header, one JSON object under the key "mmesid". Raises UserError."""
  text = json.dumps({"schema": SCHEMA, **header}, sort_keys=True)
  contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
  digests = {name: _tensor_sha256(x) for name, x in contiguous.items()}
  record = json.dumps({"header": bytes_sha256(text.encode()), "tensors": digests})
  metadata = {"mmesid": text, "sha256": record}
  with atomic_file(path) as temporary:
    safetensors.numpy.save_file(contiguous, temporary, metadata=metadata)


@main_only
def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a whole file, in the main process only. Raises UserError."""
  with atomic_file(path) as temporary:
    temporary.write_bytes(text.encode())


def strip_prefix(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """The entries whose names begin with the prefix, under the rest of their names."""
  return {k.removeprefix(prefix): x for k, x in named.items() if k.startswith(prefix)}


def read_header(path: pathlib.Path, stage: str) -> dict[str, Any]:
  """The header of the stage's artifact.

  Raises UserError for a file that is missing, truncated, not this stage's artifact, or not of its
  form in FORMS.
  """
  return _read(path, stage, None)[1]


def read_artifact(
  path: pathlib.Path, stage: str, *, prefix: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Tensors whose names begin with `prefix`, and the header.

  Raises as `read_header` does, and for a tensor that is not as it was written, not finite, or
  holds what its form does not allow.
  """
  return _read(path, stage, prefix)


def _read(path: pathlib.Path, stage: str, prefix: str | None):
  maker = MAKERS.get(stage, f"mmesid_jax.train with the stage {stage}")
  remedy = f"run {maker} to write it again (delete the file first)"
  refuse_folder(path)
  if not path.is_file():
    raise UserError(f"{path}: no such file; run {maker} first")
  file = TensorFile(path, remedy=remedy)
  try:
    text = file.metadata.get("mmesid", "null")
    header, digests = parse_json(text), parse_json(file.metadata.get("sha256", "null"))
  except ValueError as error:
    raise UserError(f"{path}: its header is not JSON ({error}); {remedy}") from None
  names = [] if prefix is None else [n for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118
  tensors = {name: file.read(name) for name in names}
  if not isinstance(header, dict) or header.get("stage") != stage:
    actual = header.get("stage") if isinstance(header, dict) else "no mmesid header"
    raise UserError(f"{path}: not an artifact of the stage {stage} (found: {actual}); {remedy}")
  if header.get("schema") != SCHEMA:
    raise UserError(f"{path}: schema {header.get('schema')}, this version reads {SCHEMA}; {remedy}")
  if digests is None:
    _warn_of_age(path)
  elif fault := _find_change(digests, text, tensors):
    raise UserError(f"{path}: {fault} is not as it was written; {remedy}")
  form, described = FORMS.get(stage), _describe(file)
  if form and (fault := find_fault(form, header, described)):
    raise UserError(f"{path}: {fault}; {remedy}")
  for name, x in tensors.items():
    if not _is_finite(x):
      raise UserError(f"{path}: {name} holds values that are not finite; {remedy}")
  if form and (fault := find_wrong_values(form, header, described, tensors)):
    raise UserError(f"{path}: {fault}; {remedy}")
  return tensors, header


def _describe(file: TensorFile) -> dict[str, tuple[str, tuple[int, ...]]]:
  """name -> type, as numpy names it, and shape of every tensor; none is read."""
  names = {name: file.type_name(name) for name in file.keys()}  # noqa: SIM118
  return {name: (TYPES.get(kind, kind), file.shape(name)) for name, kind in names.items()}


def _find_change(digests: Any, text: str, tensors: Mapping[str, np.ndarray]) -> str | None:
  """The first part that is not as it was written; None if all are.

  digests: of the header's `text` and of all tensors, as the file gives them.
  """
  if not isinstance(digests, dict) or not isinstance(digests.get("tensors"), dict):
    return "the list of digests"
  if digests.get("header") != bytes_sha256(text.encode()):
    return "the header"
  changed = (n for n, x in tensors.items() if _tensor_sha256(x) != digests["tensors"].get(n))
  return next(changed, None)


def _is_finite(x: np.ndarray) -> bool:
  """Whether all numbers are finite; integers and empty arrays are. Needs no memory."""
  if x.dtype.kind in "biu" or not x.size:
    return True
  with np.errstate(invalid="ignore"):
    return bool(np.isfinite(x.min()) and np.isfinite(x.max()))


def _tensor_sha256(x: np.ndarray) -> str:
  """The digest of type, shape and bytes."""
  kind = bytes_sha256(f"{x.dtype.name} {list(x.shape)}".encode())
  return bytes_sha256(kind.encode() + bytes_sha256(x.reshape(-1).view(np.uint8).data).encode())


@functools.cache  # once a file
def _warn_of_age(path: pathlib.Path) -> None:
  reporter.warn(f"{path}: was written before artifacts had digests; damage cannot be noticed")
