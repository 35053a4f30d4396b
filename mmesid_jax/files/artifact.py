"""What a stage hands to the next: safetensors files with a JSON header, readable without this
project."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mmesid_jax.errors import UserError, writing
from mmesid_jax.parallel import processes

SCHEMA = 1  # raised whenever the tensors of an artifact change their meaning
# What writes an artifact that no stage of the training does.
MAKERS = {"new_items": "mmesid_jax.semantic_ids encode"}


def write_artifact(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> None:
  """Writes under a temporary name and renames, in the first process only. The header is one JSON
  object under the key "mmesid"."""
  if not processes.first():
    return
  metadata = {"mmesid": json.dumps({"schema": SCHEMA, **header}, sort_keys=True)}
  contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
  with whole(path) as temporary:
    safetensors.numpy.save_file(contiguous, temporary, metadata=metadata)


def under(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """What stands under names that begin with the prefix, by the rest of its name."""
  return {k.removeprefix(prefix): x for k, x in named.items() if k.startswith(prefix)}


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes under a temporary name and renames, in the first process only."""
  write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes under a temporary name and renames, in the first process only."""
  if not processes.first():
    return
  with whole(path) as temporary:
    temporary.write_bytes(content)


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """The temporary name, which the file loses for `path` once it is whole and is deleted under
  otherwise. Raises UserError where the disk refuses it."""
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # others may write beside us
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      yield temporary
      with temporary.open("rb") as file:
        os.fsync(file.fileno())  # a disk over the network may refuse as late as here
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def read_header(path: pathlib.Path, stage: str) -> dict[str, Any]:
  """The header of the stage's artifact. Raises UserError for a missing, truncated or foreign
  file."""
  return _read(path, stage, None)[1]


def read_artifact(
  path: pathlib.Path, stage: str, *, prefix: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Tensors whose names begin with `prefix`, and the header. Raises UserError as `read_header`
  does."""
  return _read(path, stage, prefix)


def _read(path: pathlib.Path, stage: str, prefix: str | None):
  maker = MAKERS.get(stage, f"mmesid_jax.train with the stage {stage}")
  remedy = f"run {maker} to write it again (delete the file first)"
  if not path.is_file():
    raise UserError(f"{path}: no such file; run {maker} first")
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      header = json.loads((file.metadata() or {}).get("mmesid", "null"))
      names = [] if prefix is None else [n for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118
      tensors = {name: file.get_tensor(name) for name in names}
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise UserError(f"{path}: not a whole safetensors file ({error}); {remedy}") from error
  if not isinstance(header, dict) or header.get("stage") != stage:
    found = header.get("stage") if isinstance(header, dict) else "no mmesid header"
    raise UserError(f"{path}: not an artifact of the stage {stage} (found: {found}); {remedy}")
  if header.get("schema") != SCHEMA:
    raise UserError(f"{path}: schema {header.get('schema')}, this version reads {SCHEMA}; {remedy}")
  return tensors, header
