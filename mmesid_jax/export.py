"""Exports a trained model for other programs.

Examples:
  python -m mmesid_jax.export --workdir=runs/llama3 --output=llama3-8b-beauty
  python -m mmesid_jax.export --workdir=runs/beauty --format=index --output=beauty-vectors
  python -m mmesid_jax.export --workdir=runs/beauty --format=jax --output=beauty-jax

--format=transformers writes the backbone, with LoRA merged in, as a Hugging Face model folder.

--format=index writes a vector for each item and each user, .npy, and their names, Parquet, for a
nearest-neighbor index. The product of two vectors is the score without its terms that depend on
history and item together, which a blend has: transitions, repeats, reranking.

--format=jax writes the whole model as StableHLO by jax.export, with its weights: it runs where only
jax is installed, on CPU, GPU and TPU. --batch, --max_history and --top_k are the shapes of its
input and output.
"""

import pathlib

from absl import flags

from mmesid_jax.config import command_line, paths
from mmesid_jax.config.schema import SERVED
from mmesid_jax.errors import UserError

WORKDIR = paths.define_path("workdir", None, "A folder that the command train wrote.")
OUTPUT = paths.define_path("output", None, "The folder to write.")
FORMAT = flags.DEFINE_enum("format", "transformers", ["transformers", "index", "jax"], "See above.")
MODEL = flags.DEFINE_enum(
  "model", None, SERVED, "The model for index and jax; if not given, the blend if any."
)
BATCH = flags.DEFINE_integer("batch", 1, "Histories of one call, for jax.", 1, 65_536)
HISTORY = flags.DEFINE_integer("max_history", 20, "Items of a history, for jax.", 1, 65_536)
TOP_K = flags.DEFINE_integer("top_k", 10, "Items of an answer, for jax.", 1, 1_000_000)
DATA_DIR = paths.define_path("data_dir", None, "Where the data is now, for index.")
KEY = flags.DEFINE_string("key", None, "Field of items.jsonl with the keys, for index.")
flags.mark_flags_as_required(["workdir", "output"])
GROUPS = {
  "Required": "workdir=DIR output=DIR",
  "What": "format model",
  "Shapes of --format=jax": "batch max_history top_k",
  "Data of --format=index": "data_dir=DIR key=FIELD",
}
OF_FORMAT = {
  "transformers": (),
  "index": ("model", "data_dir", "key"),
  "jax": ("model", "batch", "max_history", "top_k"),
}


def main(argv: list[str]) -> None:
  del argv
  others = {name for names in OF_FORMAT.values() for name in names}
  for name in sorted(others - set(OF_FORMAT[FORMAT.value])):
    if flags.FLAGS[name].present:
      raise UserError(f"--{name}: --format={FORMAT.value} takes none")
  path, output = pathlib.Path(WORKDIR.value), pathlib.Path(OUTPUT.value)
  if FORMAT.value == "transformers":
    from mmesid_jax.reports import export_backbone

    export_backbone.export_backbone(path, output)
  elif FORMAT.value == "index":
    from mmesid_jax.serving.index_vectors import write_index
    from mmesid_jax.serving.recommender import Recommender

    options = {"model": MODEL.value, "data_dir": DATA_DIR.value, "key": KEY.value}
    write_index(Recommender.load(path, **options), output)
  else:
    from mmesid_jax.serving.jax_export import write_exported
    from mmesid_jax.serving.ranker import Ranker

    ranker = Ranker.load(path, model=MODEL.value)
    sizes = {"batch": BATCH.value, "history": HISTORY.value, "top_k": TOP_K.value}
    write_exported(ranker, output, **sizes)


if __name__ == "__main__":
  command_line.run_command(main, groups=GROUPS)
