"""The log of a stage's training: metrics.jsonl, and the trackers that show the same."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmesid_jax.files.append import append_bytes, open_to_append
from mmesid_jax.files.artifact import write_text
from mmesid_jax.files.artifact_form import NUMBER
from mmesid_jax.files.readers import parse_json, read_bytes
from mmesid_jax.parallel import processes
from mmesid_jax.training.tracker import Trackers, Training


class MetricsLog:
  """Appends {"step": ..., name: value} lines to folder/metrics.jsonl and passes the same on
  to the trackers.

  On resume, lines after `step` are dropped, since the run repeats those steps. Only the first
  process writes.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    step: int,
    trackers: Sequence[str] = ("tensorboard",),
    settings: Mapping[str, Any] | None = None,
  ):
    self._writes = processes.is_main()
    if not self._writes:
      return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    if path.exists():
      kept = [line for line in _read_lines(path) if _parse_line(line).get("step", math.inf) <= step]
      write_text(path, "".join(line + "\n" for line in kept))
    self._file = open_to_append(path)
    self._trackers = Trackers(trackers, Training(folder, step, settings or {}))

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    if not self._writes:
      return
    append_bytes(self._file, json.dumps({"step": step, **metrics}).encode() + b"\n")
    self._trackers.log(step, metrics)

  def close(self, *, finished: bool = True) -> None:
    if not self._writes:
      return
    self._file.close()
    self._trackers.close(finished=finished)


def read_values(folder: pathlib.Path, name: str) -> list[float]:
  """The values of a metric in folder/metrics.jsonl, in order; [] where there is no such file."""
  path = folder / "metrics.jsonl"
  lines = _read_lines(path) if path.exists() else ()
  return [x for line in lines if NUMBER.accepts(x := _parse_line(line).get(name))]


def _read_lines(path: pathlib.Path) -> list[str]:
  """Damaged bytes are replaced: a line with them is dropped, or their place does not matter."""
  return read_bytes(path).decode(errors="replace").splitlines()


def _parse_line(line: str) -> dict[str, float]:
  """The numbers of a log line, with its step; {} for a line that a crash cut short."""
  try:
    metrics = parse_json(line)
    return {**metrics, "step": float(metrics["step"])}
  except (ValueError, KeyError, TypeError, OverflowError):
    return {}
