"""Artifacts, which a stage leaves for the next, and other files that only the main process writes.

An artifact is a safetensors file with a JSON header, and can be read without this project.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_file
from mmesid_jax.files.readers import parse_json
from mmesid_jax.files.tensor_file import TensorFile
from mmesid_jax.parallel.processes import main_only

SCHEMA = 2  # raised whenever the tensors of an artifact change their meaning
# Artifacts that no training stage writes -> the command that does.
MAKERS = {"new_items": "mmesid_jax.semantic_ids encode"}


@main_only
def write_artifact(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> None:
  """Writes tensors and a header, one JSON object under the key "mmesid". Raises UserError."""
  metadata = {"mmesid": json.dumps({"schema": SCHEMA, **header}, sort_keys=True)}
  contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
  with atomic_file(path) as temporary:
    safetensors.numpy.save_file(contiguous, temporary, metadata=metadata)


@main_only
def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a whole file, in the main process only. Raises UserError."""
  with atomic_file(path) as temporary:
    temporary.write_bytes(text.encode())


@main_only
def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a whole file, in the main process only. Raises UserError."""
  with atomic_file(path) as temporary:
    temporary.write_bytes(content)


def strip_prefix(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """The entries whose names begin with the prefix, under the rest of their names."""
  return {k.removeprefix(prefix): x for k, x in named.items() if k.startswith(prefix)}


def read_header(path: pathlib.Path, stage: str) -> dict[str, Any]:
  """The header of the stage's artifact.

  Raises UserError for a file that is missing, truncated or not this stage's artifact.
  """
  return _read(path, stage, None)[1]


def read_artifact(
  path: pathlib.Path, stage: str, *, prefix: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Tensors whose names begin with `prefix`, and the header. Raises as `read_header` does."""
  return _read(path, stage, prefix)


def _read(path: pathlib.Path, stage: str, prefix: str | None):
  maker = MAKERS.get(stage, f"mmesid_jax.train with the stage {stage}")
  remedy = f"run {maker} to write it again (delete the file first)"
  if not path.is_file():
    raise UserError(f"{path}: no such file; run {maker} first")
  file = TensorFile(path, remedy=remedy)
  try:
    header = parse_json(file.metadata.get("mmesid", "null"))
  except ValueError as error:
    raise UserError(f"{path}: its header is not JSON ({error}); {remedy}") from None
  names = [] if prefix is None else [n for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118
  tensors = {name: file.read(name) for name in names}
  if not isinstance(header, dict) or header.get("stage") != stage:
    actual = header.get("stage") if isinstance(header, dict) else "no mmesid header"
    raise UserError(f"{path}: not an artifact of the stage {stage} (found: {actual}); {remedy}")
  if header.get("schema") != SCHEMA:
    raise UserError(f"{path}: schema {header.get('schema')}, this version reads {SCHEMA}; {remedy}")
  return tensors, header
