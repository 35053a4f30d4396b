"""The table of results of runs that differ in their seed, and the differences between models.

python benchmarks/results_table.py --workdirs=runs/a,runs/b,runs/c --control=runs/d \
  --file=results/beauty.json

Reads the ranks of the test users that `train` wrote into each workdir, writes FILE, and prints the
table and the differences with their 95 % intervals for other seeds and other users. --control: a
run with blend.network=False, whose blend is a row of its own; nothing in it depends on the seed, so
the row is the same for all. --refitted: the refits in the workdirs are rows, too. Without
--workdirs it prints what FILE holds.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.metrics import user_values
from mmesid_jax.evaluation.ranking import PROTOCOLS, difference_over_seeds
from mmesid_jax.files.artifact import read_header, write_text
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.reports.test_ranks import REFITTED, read_ranks
from mmesid_jax.stages.blend_stage import BLEND, blend_file
from mmesid_jax.stages.workdir import REFIT

METRICS = ("HR@5", "HR@10", "nDCG@5", "nDCG@10")
BLENDED = BLEND.model_name
CONTROL = "counts + content, reranked"  # the blend of a run without the network
SEEDS_SHOWN = "nDCG@5"  # with the value of each seed
COMPARED = ("nDCG@5", "HR@10")
PAIRS = (
  ("SASRec", "MME-SID"),
  ("counts + content", BLENDED),
  (CONTROL, BLENDED),
  ("MME-SID", BLENDED),
)
NETWORK = "blend.network"  # False in the control
VALIDATION = ("evidence_alone", "summed", "valid")  # of the blend's header: the metric that chose
SAME = ("config", "split", "users", "dataset")  # of the runs, apart from seed and data folder


def read_evaluation(path: pathlib.Path) -> dict:
  """evaluation.json, whose config lacks the seed and the data folder."""
  found = read_json_object(path / "evaluation.json")
  found["config"] = {k: v for k, v in found["config"].items() if k not in ("seed", "data.dir")}
  return found


def read_runs(
  workdirs: Sequence[pathlib.Path], control: pathlib.Path | None = None, refitted: bool = False
) -> dict:
  """The content of FILE. Raises UserError for runs that differ in more than their seed, and a
  control that differs from them in more than that and the network."""
  found = [read_evaluation(path) for path in workdirs]
  refits = [path / REFIT for path in workdirs] if refitted else []
  runs = [*workdirs, *refits, *([control] if control else [])]
  environments = [read_json_object(path / "environment.json") for path in runs]
  if len({evaluation["seed"] for evaluation in found}) < max(2, len(found)):
    raise UserError("--workdirs: expected two or more runs, each with another seed")
  for path, evaluation in zip(workdirs, found, strict=True):
    if any(evaluation[key] != found[0][key] for key in SAME):
      raise UserError(f"{path}: differs from {workdirs[0]} in more than its seed")
  again = [read_evaluation(path) for path in refits]
  for path, evaluation in zip(refits, again, strict=True):
    if any(evaluation[key] != found[0][key] for key in SAME if key != "dataset"):
      raise UserError(f"{path}: differs from {workdirs[0]} in more than its seed and its data")
  if control:
    evaluation = read_evaluation(control)
    without_network = found[0] | {"config": found[0]["config"] | {NETWORK: False}}
    if any(evaluation[key] != without_network[key] for key in SAME):
      raise UserError(f"{control}: differs from {workdirs[0]} in more than its seed and {NETWORK}")
  sources = {model: [(path, model) for path in workdirs] for model in found[0]["models"]}
  if refits:
    sources |= {model: [(path, model) for path in refits] for model in again[0]["models"]}
  if control:
    sources[CONTROL] = [(control, BLENDED)] * len(workdirs)
  values = {  # model -> protocol -> metric -> [seeds, users]
    model: {
      protocol: {
        metric: np.stack([user_values(ranks[protocol], (5, 10))[metric] for ranks in of_seeds])
        for metric in METRICS
      }
      for protocol in PROTOCOLS
    }
    for model, rows in sources.items()
    if (of_seeds := [read_ranks(path, "test", name) for path, name in rows])
  }
  return {
    "seeds": [run["seed"] for run in found],
    "users": found[0]["users"],
    "dataset": found[0]["dataset"],
    "config": found[0]["config"],
    "git": sorted({environment["git"] or "unknown" for environment in environments}),
    "validation": _validation(workdirs),
    "models": {
      model: {
        protocol: {metric: [round(float(x), 6) for x in x_SU.mean(1)] for metric, x_SU in x.items()}
        for protocol, x in of_model.items()
      }
      for model, of_model in values.items()
    },
    "differences": {
      f"{better} - {other}": {
        f"{protocol} {metric}": [
          round(x, 6)
          for x in difference_over_seeds(
            values[better][protocol][metric] - values[other][protocol][metric]
          )
        ]
        for protocol in PROTOCOLS
        for metric in COMPARED
      }
      for other, better in (*PAIRS, *((a + REFITTED, b + REFITTED) for a, b in PAIRS))
      if {other, better} <= values.keys()
    },
  }


def _validation(workdirs: Sequence[pathlib.Path]) -> dict[str, list[float]]:
  """Those of VALIDATION that all runs have; a refit has none."""
  files = [blend_file(path) for path in workdirs]
  if not all(file.exists() for file in files):
    return {}
  headers = [read_header(file, BLEND.name) for file in files]
  return {
    name: [round(header[name], 6) for header in headers]
    for name in VALIDATION
    if all(name in header for header in headers)
  }


def table_rows(results: Mapping) -> list[str]:
  """Markdown rows of the models, masked before unmasked."""

  def cell(metric: str, seeds: Sequence[float]) -> str:
    each = f" ({', '.join(f'{x:.4f}' for x in seeds)})" if metric == SEEDS_SHOWN else ""
    return f"{np.mean(seeds):.4f}{each if len(set(seeds)) > 1 else ''}"

  return [
    f"| {protocol} | {model} | "
    + " | ".join(cell(metric, of_model[protocol][metric]) for metric in METRICS)
    + " |"
    for protocol in PROTOCOLS
    for model, of_model in results["models"].items()
  ]


def difference_rows(results: Mapping) -> list[str]:
  """Markdown rows of the differences."""
  return [
    f"| {pair} | {name} | {_signed(mean)} [{_signed(low)}, {_signed(high)}] |"
    for pair, found in results["differences"].items()
    for name, (mean, low, high) in found.items()
  ]


def _signed(x: float) -> str:
  return f"{round(x, 4) + 0.0:+.4f}"  # never -0.0000


def main(argv: list[str]) -> None:
  del argv
  file = pathlib.Path(FILE.value)
  if WORKDIRS.value:
    control = pathlib.Path(CONTROL_DIR.value) if CONTROL_DIR.value else None
    results = read_runs([*map(pathlib.Path, WORKDIRS.value)], control, REFITS.value)
    write_text(file, json.dumps(results, indent=1) + "\n")
  results = read_json_object(file)
  print("\n".join([*table_rows(results), "", *difference_rows(results)]))


if __name__ == "__main__":
  from absl import flags

  from mmesid_jax.config import command_line

  WORKDIRS = flags.DEFINE_list("workdirs", None, "Runs that differ in their seed.")
  CONTROL_DIR = flags.DEFINE_string("control", None, "The same without the network in the blend.")
  REFITS = flags.DEFINE_bool("refitted", False, "Read the workdirs' refits, too.")
  FILE = flags.DEFINE_string("file", None, "The JSON file with the results.")
  flags.mark_flag_as_required("file")
  command_line.run_command(main)
