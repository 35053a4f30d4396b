"""Does it cost quality that a batch holds all targets of few users?
python benchmarks/composition.py --workdir=runs/beauty --output=runs/composition

Trains the recommender of a workdir again, on the vectors and semantic IDs that it holds: with all
targets of a user in one batch (shared-prefix rows), and with shuffled samples of one target, as
usual; with response tokens and without; every seed of --seeds. The same targets, losses and steps
an epoch: only which targets share a batch differs. --compositions may name "two targets" too, pairs
of a user that stay together; all are compared with "one target". --share=0.5 halves the batches.
Finished runs are skipped, so the command can be repeated. Prints a table, writes
OUTPUT/composition.json and, a picture, OUTPUT/composition.svg.
"""

import json
import pathlib
import shutil
import statistics

from absl import flags
from timing import alternate, environment, write

from mmesid_jax.config import command_line
from mmesid_jax.config.saved import read_config
from mmesid_jax.errors import UserError
from mmesid_jax.stages.workdir import open_workdir

WORKDIR = flags.DEFINE_string("workdir", None, "A folder with the first two stages trained.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for runs, figures and the picture.")
DATA = flags.DEFINE_string("data", None, "Where the data set is now, if it moved.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the recommender.")
RESPONSES = flags.DEFINE_list("responses", ["0", "1"], "Learned tokens behind every target.")
NAMES = flags.DEFINE_list("compositions", ["packed", "one target"], "What a batch is made of.")
SHARE = flags.DEFINE_float("share", 1.0, "Of the workdir's targets a step.", 0.01, 1.0)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of the measurement of speed.")
flags.mark_flags_as_required(["workdir", "output"])

EPOCHS = 4
COMPOSITIONS = {"packed": 0, "two targets": 2, "one target": 1}  # targets_per_piece
REFERENCE = "one target"
SHOWN = ("masked nDCG@5", "masked HR@10", "unmasked nDCG@5", "unmasked HR@10")


def main(argv: list[str]) -> None:
  del argv
  source, output = pathlib.Path(WORKDIR.value), pathlib.Path(OUTPUT.value)
  for name in NAMES.value:
    if name not in COMPOSITIONS:
      raise UserError(f"--compositions={name}: expected some of {', '.join(COMPOSITIONS)}")
  if REFERENCE not in NAMES.value:
    raise UserError(f"--compositions: wants {REFERENCE!r}, which others are compared with")
  runs = []
  for seed in map(int, SEEDS.value):
    for response in map(int, RESPONSES.value):
      for name in NAMES.value:
        folder = folder_of(output, response, name, seed)
        if not (folder / "run.json").exists():
          train(source, folder, seed, response, COMPOSITIONS[name])
        run = json.loads((folder / "run.json").read_text())
        runs.append({"composition": name, "response": response, "seed": seed, **run})
  kinds = [(int(response), name) for response in RESPONSES.value for name in NAMES.value]
  rows = [summary(runs, output, *kind) for kind in kinds]
  rates = speeds(source)
  for row in rows:
    row["targets_per_second"] = rates[f"{row['composition']}, response {row['response']}"]
  print(table(rows))
  write(output / "composition.json", {"environment": environment(), "rows": rows, "runs": runs})
  draw(rows, output / "composition.svg")


def summary(runs: list[dict], output: pathlib.Path, response: int, name: str) -> dict:
  """Test metrics of every seed, and how far their mean is from the reference's: a 95 % interval for
  other seeds and other users, who are the same ones on both sides; with one seed for other users
  alone."""
  import numpy as np

  from mmesid_jax.evaluation.metrics import user_values
  from mmesid_jax.evaluation.ranking import PROTOCOLS, difference_over_seeds, paired_difference

  def per_user(composition: str) -> dict[str, np.ndarray]:
    """metric -> float64 [seeds, U]."""
    found: dict[str, list[np.ndarray]] = {}
    for seed in SEEDS.value:
      folder = folder_of(output, response, composition, int(seed))
      for protocol in PROTOCOLS:
        ranks = np.load(folder / f"{protocol}.npy", allow_pickle=False)
        for metric, value_U in user_values(ranks, (5, 10)).items():
          found.setdefault(f"{protocol} {metric}", []).append(value_U)
    return {metric: np.stack(values_SU) for metric, values_SU in found.items()}

  ours, reference = per_user(name), per_user(REFERENCE)
  row = {"composition": name, "response": response, "metrics": {}}
  for metric in SHOWN:
    difference_SU = ours[metric] - reference[metric]
    if len(difference_SU) > 1:
      mean, low, high = difference_over_seeds(difference_SU)
    else:
      mean, low, high = paired_difference(difference_SU[0])
    row["metrics"][metric] = {
      "seeds": ours[metric].mean(1).tolist(),
      "mean": float(ours[metric].mean()),
      "to_reference": mean,
      "interval": [low, high],
    }
  mine = [r for r in runs if (r["composition"], r["response"]) == (name, response)]
  row["steps"] = mine[0]["steps"]
  row["curve"] = np.mean([r["valid nDCG@5"] for r in mine], axis=0).tolist()
  row["targets_an_epoch"] = mine[0]["targets"]
  return row


def folder_of(output: pathlib.Path, response: int, composition: str, seed: int) -> pathlib.Path:
  return output / f"response{response}-{composition.replace(' ', '-')}-seed{seed}"


def configuration(source: pathlib.Path, seed: int, response: int, targets_per_piece: int):
  """The workdir's, with rows enough for the same number of targets a batch."""
  from mmesid_jax.data.row_layout import with_rows_for
  from mmesid_jax.stages import recommender_stage

  config = read_config(source)
  config.data.dir = DATA.value or config.data.dir
  config.seed = seed
  r = config.recommender
  r.prompt.response, r.targets_per_piece = response, targets_per_piece
  r.epochs = EPOCHS
  batches, _ = recommender_stage.make_batches(config, open_workdir(config, source).dataset)
  r.rows = max(
    round(SHARE.value * with_rows_for(recommender_stage.batch_layout(r), batches.pieces).rows), 1
  )
  r.targets = max(int(SHARE.value * r.targets), 1)
  return config


def train(
  source: pathlib.Path, folder: pathlib.Path, seed: int, response: int, targets_per_piece: int
) -> None:
  """One run: its folder holds the learning curve and every user's rank of the test item."""
  import numpy as np

  from mmesid_jax.evaluation.evaluator import Evaluator
  from mmesid_jax.files import artifact
  from mmesid_jax.stages import recommender_stage
  from mmesid_jax.stages.sequence_task import evaluation_layout

  folder.mkdir(parents=True, exist_ok=True)
  config = configuration(source, seed, response, targets_per_piece)
  for stage in ("collaborative", "semantic_ids"):
    if not (folder / f"{stage}.safetensors").exists():
      shutil.copy(source / f"{stage}.safetensors", folder)
  workdir = open_workdir(config, folder)
  print(f"\n{folder.name}: {config.recommender.rows} rows")
  recommender_stage.RECOMMENDER.train(workdir)
  layout = evaluation_layout(
    recommender_stage.batch_layout(config.recommender), config.evaluation.targets
  )
  ranks = Evaluator(workdir.dataset, layout, "test").model_ranks(
    recommender_stage.load_recommender(folder, config)
  )
  for protocol, rank_U in ranks.items():
    np.save(folder / f"{protocol}.npy", rank_U)
  lines = map(json.loads, (folder / "recommender" / "metrics.jsonl").read_text().splitlines())
  curve = [line for line in lines if "valid/nDCG@5" in line]
  run = {
    "rows": config.recommender.rows,
    "targets": recommender_stage.make_batches(config, workdir.dataset)[1].targets,
    "steps": [line["step"] for line in curve],
    "valid nDCG@5": [line["valid/nDCG@5"] for line in curve],
    "valid unmasked nDCG@5": [line["valid/unmasked/nDCG@5"] for line in curve],
  }
  artifact.write_text(folder / "run.json", json.dumps(run) + "\n")


def speeds(source: pathlib.Path) -> dict[str, float]:
  """Targets a second of the training step, taking turns in one run."""
  import jax
  from flax import nnx

  from mmesid_jax.data.dataset import popularity
  from mmesid_jax.stages import recommender_stage
  from mmesid_jax.training import optimizer
  from mmesid_jax.training.step import initial_state, make_step

  def contestant(response: int, targets_per_piece: int):
    config = configuration(source, 0, response, targets_per_piece)
    workdir = open_workdir(config, source)
    batches, _ = recommender_stage.make_batches(config, workdir.dataset)
    graph, params, frozen = nnx.split(recommender_stage.init_model(workdir), nnx.Param, ...)
    adamw = optimizer.make_optimizer(config.recommender.optimizer, 1000)
    loss = recommender_stage.recommender_loss(config.recommender, popularity(workdir.dataset))
    step, iterator = make_step(loss, adamw, graph, seed=0), iter(batches)
    state = initial_state(params, adamw)

    def work() -> float:
      nonlocal state
      batch = next(iterator)
      state, metrics = step(state, frozen, batch)
      jax.block_until_ready(metrics)
      return float(batch.weight_Q.sum())

    return work

  contestants = {
    f"{name}, response {response}": contestant(response, COMPOSITIONS[name])
    for response in map(int, RESPONSES.value)
    for name in NAMES.value
  }
  rates = alternate(contestants, ROUNDS.value)
  return {name: statistics.median(found) for name, found in rates.items()}


def table(rows: list[dict]) -> str:
  lines = [f"{'response':8}  {'batch':12}" + "".join(f"{name:>34}" for name in SHOWN)]
  for row in rows:
    line = f"{row['response']:8}  {row['composition']:12}"
    for name in SHOWN:
      found = row["metrics"][name]
      low, high = found["interval"]
      line += f"{found['mean']:10.4f} {found['to_reference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    lines.append(line)
  return "\n".join([*lines, f"behind a mean: how far from '{REFERENCE}', with its 95 % interval"])


def draw(rows: list[dict], path: pathlib.Path) -> None:
  """Learning curves on validation, by epoch and by minutes of the measured rate."""
  import matplotlib

  matplotlib.use("svg")
  matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "composition"}
  from matplotlib import pyplot, ticker

  figure, by_x = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
  for row in rows:
    label = f"{row['composition']}, {row['response'] or 'no'} response tokens"
    style = {"color": f"C{RESPONSES.value.index(str(row['response']))}", "label": label}
    style["linestyle"] = "-" if row["composition"] == "packed" else "--"
    epochs = range(1, len(row["curve"]) + 1)
    minutes = [e * row["targets_an_epoch"] / row["targets_per_second"] / 60 for e in epochs]
    for axes, x in zip(by_x, (epochs, minutes), strict=True):
      axes.plot(x, row["curve"], marker=".", **style)
  by_x[0].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  by_x[0].set(xlabel="epoch", ylabel="validation nDCG@5, masked")
  by_x[1].set(xlabel="minutes of training")
  by_x[0].legend(frameon=False, fontsize=8)
  for axes in by_x:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
  command_line.run_command(main)
