"""Texts about the keys: for `train --explain`, and for the documentation's page of keys.

  python -m mmesid_jax.config.explain

prints that page as Markdown.
"""

import itertools
from typing import Any

from ml_collections import ConfigDict

from mmesid_jax.config.command_line import nearest_name
from mmesid_jax.config.presets import PRESETS
from mmesid_jax.config.rules import Key
from mmesid_jax.config.schema import KEYS, flatten, key_row
from mmesid_jax.config.sizes import SIZE_KEYS
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError

SECTIONS = {
  "": "General",
  "data": "The dataset",
  "features": "Feature tables",
  "collaborative": "Stage collaborative: SASRec",
  "semantic_ids": "Stage semantic_ids: codes of the items",
  "recommender": "Stage recommender: the language model",
  "blend": "Stage blend: the recommender with counts and content",
  "evaluation": "Evaluation",
  "run": "How a run logs, saves and compiles",
  "mesh": "Devices",
  "profile": "Profiling",
}


def explain(config: ConfigDict, prefix: str = "") -> str:
  """Text about the keys under a prefix: value, meaning, default and allowed values of each.

  Args:
    config: The configuration whose values are shown.
    prefix: A key or a section, such as recommender.prompt; empty = all keys.

  Raises:
    UserError: For a prefix that is neither; names the nearest.
  """
  values = flatten(config)
  shown = {k: v for k, v in values.items() if not prefix or f"{k}.".startswith(f"{prefix}.")}
  if not shown:
    near = nearest_name(prefix, [*_sections(values), *values])
    raise UserError(f"--explain={prefix}: no such key or section; did you mean {near}?")
  changes = PRESETS[config.preset]
  lines = [f"preset {config.preset}; * = not the default; --config.KEY=VALUE sets a key"]
  for key, value in shown.items():
    row = key_row(key)
    notes = [f"default {_text(row.default)}", f"allowed: {allowed_values(key, row)}"]
    if key in changes and changes[key] != row.default:
      notes.insert(1, f"preset {_text(changes[key])}")
    mark = " " if _text(value) == _text(row.default) else "*"
    lines += [f"\n{mark} {key} = {_text(value)}", f"    {row.meaning}", f"    {'; '.join(notes)}"]
  return "\n".join(lines)


def documentation() -> str:
  """The page of all keys, Markdown: a section for each group, then the presets."""
  parts = [
    "# Configuration",
    "Set a key with `--config.KEY=VALUE` after `--config=FILE`. `python -m mmesid_jax.train "
    "--config=FILE --explain` prints this page with the values of a file, `--explain=KEY` a part "
    "of it. A value out of range and a name that does not exist are refused before anything "
    "starts.",
  ]
  for section, keys in itertools.groupby(KEYS, lambda key: key.rpartition(".")[0].split(".")[0]):
    rows = [_row(key) for key in keys]
    if section == "features":
      rows.append(_row("features.name", "any other name is a modality too"))
    title = SECTIONS.get(section, section)
    parts += [f"## {title}", _table(["key", "default", "allowed", "meaning"], rows)]
  changed = sorted({key for changes in PRESETS.values() for key in changes})
  rows = [
    [f"`{key}`", *(_code(changes.get(key, KEYS[key].default)) for changes in PRESETS.values())]
    for key in changed
  ]
  parts += [
    "## Presets",
    "`--config=FILE` takes the choices that measured best, `--config=FILE:paper` the published "
    "ones, `--config=FILE:released_code` those of the published code. Sizes stay as they are.",
    _table(["key", *PRESETS], rows),
  ]
  return "\n\n".join(parts) + "\n"


def allowed_values(key: str, row: Key) -> str:
  """The words of the key's rule, and that 0 follows the data, where it does."""
  return row.rule.text + ("; 0 = from the size of the data" if key in SIZE_KEYS else "")


def _sections(keys) -> list[str]:
  """Every prefix of the keys that ends before a dot."""
  return sorted({".".join(k.split(".")[:n]) for k in keys for n in range(1, k.count(".") + 1)})


def _text(value: Any) -> str:
  """A value as the command line takes it."""
  if isinstance(value, list | tuple):
    return ",".join(map(str, value))
  return "(empty)" if value == "" else f"{value}"


def _code(value: Any) -> str:
  return "empty" if value == "" else f"`{_text(value)}`"


def _row(key: str, note: str = "") -> list[str]:
  row = key_row(key)
  meaning = f"{row.meaning} ({note})" if note else row.meaning
  return [f"`{key}`", _code(row.default), allowed_values(key, row), meaning]


def _table(head: list[str], rows: list[list[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(c.replace('|', '&#124;') for c in line)} |" for line in lines)


if __name__ == "__main__":
  reporter.info(documentation().rstrip())
