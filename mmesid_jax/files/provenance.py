"""Compares the settings that a file was made from with those of the present run."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import parse_json, read_bytes

MADE_FROM = "made_from"  # the key of the settings, in JSON that is written beside a file
SHOWN = 3  # differences that a message names


def describe_differences(
  before: Mapping[str, Any], now: Mapping[str, Any], *, missing: str = "not set"
) -> str:
  """The keys with different values, as "NAME was X, now Y, ..."; "" where there are none.

  At most three are shown, in alphabetical order, with the number of the others.

  Args:
    before: the settings of a file that exists.
    now: the settings of this run, in the types that JSON gives back.
    missing: shown for a key that is on one side only. A value of None equals a missing key.
  """
  names = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))

  def shown(side: Mapping[str, Any], name: str) -> str:
    return repr(side[name]) if name in side else missing

  text = ", ".join(f"{k} was {shown(before, k)}, now {shown(now, k)}" for k in names[:SHOWN])
  return f"{text} and {len(names) - SHOWN} more" if len(names) > SHOWN else text


def check_same_settings(
  before: Mapping[str, Any],
  now: Mapping[str, Any],
  *,
  label: str,
  remedy: str,
  missing: str = "not set",
) -> None:
  """Raises UserError "LABEL: NAME was X, now Y; REMEDY" unless both have the same settings.

  Args:
    before, now, missing: as in `describe_differences`.
    label: the file, and what is wrong with it.
    remedy: what the user can do.
  """
  if differences := describe_differences(before, now, missing=missing):
    raise UserError(f"{label}: {differences}; {remedy}")


def check_made_from(path: Path, record: bytes, made_from: Mapping[str, Any]) -> None:
  """Raises UserError unless the JSON object `record`, which belongs to `path`, says the same.

  record: {"made_from": {...}, ...}.
  """
  remedy = "choose another --output, or --overwrite"
  try:
    before = dict(parse_json(record)[MADE_FROM])
  except (ValueError, KeyError, TypeError):
    raise UserError(f"{path}: does not say what it was made from; {remedy}") from None
  check_same_settings(before, made_from, label=f"{path}: made from something else", remedy=remedy)


def check_own_folder(folder: Path, mark: Path, *, ignore: Collection[str] = ()) -> None:
  """Raises UserError for a folder that holds files though `mark`, which is written with it, is
  missing: somebody else wrote them.

  ignore: names of files that do not matter.
  """
  if mark.exists() or not folder.is_dir():
    return
  if found := sorted(file.name for file in folder.iterdir() if file.name not in ignore):
    raise UserError(
      f"{folder}: holds {found[0]} and was not written by a run; move it away, or choose another "
      "--workdir"
    )


def is_made_from(mark: Path, made_from: Any) -> bool:
  """Whether the JSON file `mark` exists and holds exactly this value."""
  try:
    return parse_json(read_bytes(mark)) == parse_json(json.dumps(made_from))
  except (UserError, ValueError):
    return False
