"""The result of a run as a small JSON file, and tables of what every variant gains over base."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmesid_jax.config.rules import Rule
from mmesid_jax.display.table import format_markdown_table
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.metrics import PRINTED, user_values
from mmesid_jax.evaluation.ranking import (
  PROTOCOLS,
  difference_over_seeds,
  paired_difference,
  summarize_ranks,
)
from mmesid_jax.files.artifact import write_text
from mmesid_jax.files.artifact_form import COUNT, MAPPING, NUMBER, NUMBERS, TEXT
from mmesid_jax.files.readers import read_bytes, read_json_object

CUTOFFS = (5, 10)
COMPARED = ("nDCG@5", "HR@10")
GROUPS = 32  # of users: few enough for a small file, enough for an interval
TABLE = "table.md"
START = f"Test, history {PROTOCOLS[0]}:\n"  # of the file TABLE

Ranks = Mapping[str, np.ndarray]  # protocol -> int32 [U]
Result = Mapping[str, Any]


def _is_metrics(found: Any) -> bool:
  values = [_entry(found, protocol, metric) for protocol in PROTOCOLS for metric in COMPARED]
  return all(NUMBERS.accepts(x) and len(x) == 3 for x in values)


def _is_gains(found: Any) -> bool:
  gains = [_entry(found, f"{protocol} {metric}") for protocol in PROTOCOLS for metric in COMPARED]
  return not found or all(
    NUMBER.accepts(_entry(gain, "mean"))
    and all(NUMBERS.accepts(_entry(gain, name)) for name in ("interval", "groups"))
    and len(gain["interval"]) == 2
    and 0 < len(gain["groups"]) <= GROUPS
    for gain in gains
  )


def _entry(value: Any, *keys: str) -> Any:
  """The value under these keys, of mappings in a mapping; None where there is none."""
  for key in keys:
    value = value.get(key) if isinstance(value, dict) else None
  return value


METRICS = Rule(_is_metrics, "metrics with their intervals, by protocol")
FIELDS = {  # of a result: those that are read
  "variant": TEXT,
  "seed": Rule(lambda x: type(x) is int, "a whole number"),
  "changes": MAPPING,
  "config": MAPPING,
  "dataset": TEXT,
  "users": COUNT,
  "git": Rule(lambda x: x is None or TEXT.accepts(x), "a revision, or null"),
  "test": METRICS,
  "valid": METRICS,
  "to_base": Rule(_is_gains, "the gains over base, {} or null"),
}


def summarize_metrics(
  ranks: Ranks, *, resamples: int, seed: int
) -> dict[str, dict[str, list[float]]]:
  """protocol -> HR and nDCG at 5 and 10 -> mean and 95 % bootstrap interval over users."""

  def shown(rank_U: np.ndarray) -> dict[str, list[float]]:
    found = summarize_ranks(rank_U, CUTOFFS, resamples=resamples, seed=seed)
    return {
      name: [round(x, 5) for x in value.values()]
      for name, value in found.items()
      if name.partition("@")[0] in PRINTED
    }

  return {protocol: shown(ranks[protocol]) for protocol in PROTOCOLS}


def gains_over_base(ranks: Ranks, reference: Ranks) -> dict[str, dict[str, Any]]:
  """ "masked nDCG@5" ... -> mean of the users' differences to the reference, its 95 % bootstrap
  interval, and the means of GROUPS groups of users, for `pool_seeds`."""
  found = {}
  for protocol in PROTOCOLS:
    ours, theirs = (user_values(r[protocol], CUTOFFS) for r in (ranks, reference))
    for metric in COMPARED:
      difference_U = ours[metric] - theirs[metric]
      mean, low, high = paired_difference(difference_U)
      groups = [difference_U[g::GROUPS].mean() for g in range(min(GROUPS, len(difference_U)))]
      found[f"{protocol} {metric}"] = {
        "mean": round(mean, 6),
        "interval": [round(low, 6), round(high, 6)],
        "groups": [round(float(x), 6) for x in groups],
      }
  return found


def pool_seeds(seeds: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
  """Mean over seeds of one of `gains_over_base`, and its 95 % interval.

  With one seed, its bootstrap interval, for other users. With several, an interval for other users
  and other seeds, from the groups' means: the differences of single users are not in the files.
  """
  mean = float(np.mean([gain["mean"] for gain in seeds]))
  if len(seeds) == 1:
    return mean, *seeds[0]["interval"]
  center, low, high = difference_over_seeds(np.array([gain["groups"] for gain in seeds]))
  return mean, mean + low - center, mean + high - center


def write_result(path: pathlib.Path, result: Result) -> None:
  """Writes a line for each key."""
  lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items()]
  write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_result(path: pathlib.Path) -> Result:
  """The result in a file. Raises UserError for a file of another kind, or a damaged one."""
  result = read_json_object(path, remedy="delete it")
  if FIELDS.keys() - result.keys():
    raise UserError(f"{path}: no result of mmesid_jax.ablate; move it elsewhere")
  for name, rule in FIELDS.items():
    if not rule.accepts(result[name]):
      raise UserError(f"{path}: {name}: not as it was written, expected {rule.text}; delete it")
  return result


def read_results(folder: pathlib.Path) -> dict[str, dict[int, Result]]:
  """variant -> seed -> result, from every JSON file in the folder. Raises UserError for a file of
  another kind, or results of different data sets."""
  found: dict[str, dict[int, Result]] = {}
  first: tuple[pathlib.Path, tuple[str, int]] | None = None
  for path in sorted(folder.glob("*.json")):
    result = read_result(path)
    data = (result["dataset"], result["users"])
    first = first or (path, data)
    if data != first[1]:
      raise UserError(f"{path}: of another data set than {first[0]}; keep them in two folders")
    found.setdefault(result["variant"], {})[result["seed"]] = result
  return {variant: dict(sorted(seeds.items())) for variant, seeds in found.items()}


def check_table(folder: pathlib.Path) -> None:
  """Raises UserError for a file TABLE in the folder that `write_table` did not write."""
  path = folder / TABLE
  if path.exists() and not read_bytes(path).startswith(START.encode()):
    raise UserError(
      f"{path}: mmesid_jax.ablate did not write it; move it away, or name another --results"
    )


def write_table(folder: pathlib.Path, text: str) -> None:
  """Writes the file TABLE, which begins with `ablation_tables`. Raises as `check_table` does."""
  check_table(folder)
  write_text(folder / TABLE, text + "\n")


def ablation_tables(results: Mapping[str, Mapping[int, Result]], order: Iterable[str]) -> str:
  """Markdown tables, one for each protocol, with a row for each variant: those of `order` first."""
  names = [name for name in order if name in results]
  names += [name for name in results if name not in names]
  return "\n\n".join(
    f"Test, history {protocol}:\n\n{_table(results, names, protocol)}" for protocol in PROTOCOLS
  )


def _table(results, names: Sequence[str], protocol: str) -> str:
  header, rows = ["variant", "seeds"], []
  for metric in COMPARED:
    header += [metric, "to base"]
  for name in names:
    found = results[name]
    row = [name, ", ".join(map(str, found))]
    for metric in COMPARED:
      means = [result["test"][protocol][metric][0] for result in found.values()]
      each = f" ({', '.join(f'{mean:.4f}' for mean in means)})" if len(means) > 1 else ""
      row += [f"{np.mean(means):.4f}{each}", _gain(found.values(), f"{protocol} {metric}")]
    rows.append(row)
  return format_markdown_table(header, rows)


def _gain(results: Iterable[Result], key: str) -> str:
  """The gain over base, from the seeds that have a base run."""
  seeds = [result["to_base"][key] for result in results if result["to_base"]]
  if not seeds:
    return ""
  mean, low, high = pool_seeds(seeds)
  return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
