"""A large file that is made part by part, so that a run that was stopped goes on where it was.

Parts lie in a folder beside the output, OUTPUT.parts, each written under a temporary name and
renamed; settings.json says what they were made with. The output appears once, whole, from all of
them, and then the folder is removed.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmesid_jax.errors import UserError
from mmesid_jax.files import artifact, rows

SETTINGS, LOCK = "settings.json", "lock"


class Parts:
  """The folder of `output`, for `count` parts.

  settings: whatever decides what the parts hold, as JSON has it. Raises UserError for a folder of
  other settings, or one that this did not make.
  """

  def __init__(self, output: Path, count: int, settings: Mapping[str, Any]):
    self.output, self._count = output, count
    self.folder = folder_of(output)
    mark = self.folder / SETTINGS
    if mark.is_file():
      self._check(mark, settings)
      return
    if foreign := sorted(f.name for f in self._foreign()):
      raise UserError(
        f"{self.folder}: holds {foreign[0]} and no {SETTINGS}, so it is not known what it is; "
        "move it away, or choose another --output"
      )
    artifact.write_text(mark, json.dumps(settings, indent=1) + "\n")

  def missing(self) -> list[int]:
    """The parts that are not there yet, from 0."""
    return [n for n in range(self._count) if not self._part(n).is_file()]

  def write(self, n: int, schema: rows.Schema, columns: rows.Columns) -> None:
    rows.write_table(self._part(n), schema, columns)

  def finish(self) -> None:
    """Puts the output together from all parts and removes their folder."""
    joined = self.folder / f"joined{self.output.suffix}"  # here it is removed, whatever happens
    rows.join([self._part(n) for n in range(self._count)], joined)
    os.replace(joined, self.output)
    for n in range(self._count):
      self._part(n).unlink()  # the settings last: a kill between leaves a folder that is known
    shutil.rmtree(self.folder)

  def _part(self, n: int) -> Path:
    return self.folder / f"{n:06}{self.output.suffix}"

  def _foreign(self) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
      for file in self.folder.iterdir():
        if file.name != LOCK and not file.name.startswith(SETTINGS):
          yield file

  def _check(self, mark: Path, wanted: Mapping[str, Any]) -> None:
    try:
      found = json.loads(mark.read_text())
    except ValueError:
      found = None
    if not isinstance(found, dict):
      raise UserError(f"{mark}: is not as it was written; delete {self.folder} to begin anew")
    for name in sorted(found.keys() | wanted.keys()):
      if found.get(name) != wanted.get(name):
        raise UserError(
          f"{self.folder}: holds parts of another run: {name} was {found.get(name)}, is now "
          f"{wanted.get(name)}; finish that one with its own settings, or delete the folder to "
          "begin anew"
        )


def folder_of(output: Path) -> Path:
  return output.with_name(f"{output.name}.parts")
