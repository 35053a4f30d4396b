"""Time of a request for recommendations, by the blend and by its network alone:

  python benchmarks/blend_cost.py --workdir=runs/beauty --output=runs/blend_cost

Asks for the 10 best items of 1 history and of 64, by the blend of a workdir and by its network
alone, in turns. Histories are those of the data set's users. Prints a table for each, and writes
OUTPUT/blend_cost.json. Training has no part in it: the network is trained without the evidence.
"""

import pathlib

import timing
from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.serving.ranker import Ranker
from mmesid_jax.stages.recommender_stage import load_recommender
from mmesid_jax.stages.workdir import reopen_workdir

WORKDIR = flags.DEFINE_string("workdir", None, "A folder with all stages trained.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for the figures.")
DATA = flags.DEFINE_string("data", None, "Where the data set is now, if it moved.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds that count.", lower_bound=1)
flags.mark_flags_as_required(["workdir", "output"])

SIZES = (1, 64)  # histories of a request


def main(argv: list[str]) -> None:
  del argv
  workdir = reopen_workdir(pathlib.Path(WORKDIR.value), DATA.value)
  network = load_recommender(workdir.path, workdir.config)
  served = {
    "network": Ranker(network, workdir.config, workdir.path),
    "blend": Ranker.load(workdir.path),
  }
  figures = {}
  for size in SIZES:
    histories = [workdir.dataset.sequence(user) for user in range(min(size, len(workdir.dataset)))]
    work = {
      name: lambda model=model, histories=histories: len(model.top_items(histories, 10).item_EA)
      for name, model in served.items()
    }
    figures[size] = timing.alternate(work, ROUNDS.value)
    print(f"\n{size} histories a request\n{timing.table(figures[size], 'histories', 'network')}")
  file = pathlib.Path(OUTPUT.value) / "blend_cost.json"
  timing.write(file, {"environment": timing.environment(), "rates": figures})


if __name__ == "__main__":
  command_line.run_command(main)
