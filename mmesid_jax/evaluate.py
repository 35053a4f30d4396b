"""Ranks the held-out items with a trained model, or examines its semantic IDs.

Examples:
  python -m mmesid_jax.evaluate --workdir=runs/quickstart --split=valid
  python -m mmesid_jax.evaluate --workdir=runs/quickstart --stage=semantic_ids

Nothing is trained. The first one ranks all items for every user, prints a table of popularity,
SASRec and the recommender, and writes evaluation_valid.json (evaluation.json for --split=test):
HR, nDCG, MRR, MAP (equal to MRR with one target per user) and coverage, the share of the catalogue
in at least one user's top k.

The second one prints a verdict on the semantic IDs (are the codes in use, does every item have its
own ID, do the codes keep the order of distances?) and tables, and writes semantic_ids.json and the
page semantic_ids.html.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.errors import UserError

WORKDIR = paths.define_path("workdir", None, "A folder that the command train wrote.")
STAGE = flags.DEFINE_enum(
  "stage", "recommender", ["recommender", "semantic_ids"], "The stage to evaluate."
)
SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "The held-out items to rank.")
MESH = flags.DEFINE_list(
  "mesh", None, "Devices on the axes data, fsdp, tensor (-1 = the rest), if not as in training."
)
DATA_DIR = paths.define_path("data_dir", None, "Where the data is now, if it has moved.")
command_line.define_process_flags()
flags.mark_flag_as_required("workdir")
GROUPS = {
  "Required": "workdir=DIR",
  "What to evaluate": "stage split",
  "Where": "data_dir=DIR mesh",
} | command_line.PROCESS_GROUP


def main(argv: list[str]) -> None:
  del argv
  if SPLIT.present and STAGE.value == "semantic_ids":
    raise UserError("--split: belongs to --stage=recommender; semantic IDs are those of all items")
  from mmesid_jax import pipeline
  from mmesid_jax.config.saved import read_config
  from mmesid_jax.parallel import processes
  from mmesid_jax.stages.workdir import reopen_workdir

  path = pathlib.Path(WORKDIR.value)
  heartbeat_seconds = read_config(path).run.heartbeat_seconds
  processes.start(command_line.process_environment(), heartbeat_seconds=heartbeat_seconds)
  if MESH.value and STAGE.value == "semantic_ids":
    raise UserError("--mesh: semantic IDs are examined on one device")
  workdir = processes.main_first(
    "open the workdir", lambda: reopen_workdir(path, DATA_DIR.value, MESH.value)
  )
  if STAGE.value == "semantic_ids":
    pipeline.report_semantic_ids(workdir)
  else:
    pipeline.report_ranks(workdir, SPLIT.value)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
