"""What keeps codebooks alive and distances in order?
python benchmarks/semantic_id_quality.py --data=DIR --output=runs/semantic_id_quality

Trains the semantic-ID stage of configs/beauty.py in variants: as the paper has it, with MSE, MMD
and both as reconstruction; ours, and ours with one choice taken back; residual k-means and a grid.
Variants share the collaborative vectors (--collaborative=FILE: in DIR, instead of our own stage).
Finished ones are skipped. Prints a table: of every modality usage by level, collisions, Kendall's
tau. Writes OUTPUT/semantic_id_quality.json.
"""

import json
import pathlib

from absl import flags
from timing import environment, write

from mmesid_jax.config import command_line
from mmesid_jax.errors import UserError

DATA = flags.DEFINE_string("data", None, "A folder with sequences.txt and text.npy.")
OUTPUT = flags.DEFINE_string("output", None, "A folder for workdirs and figures.")
COLLABORATIVE = flags.DEFINE_string("collaborative", "stage", "A table in --data, or stage.")
SEED = flags.DEFINE_integer("seed", 0, "Of all stages.")
SET = flags.DEFINE_multi_string("set", [], "key=value (JSON), of every variant's config.")
ONLY = flags.DEFINE_list("variants", None, "Some of the variants' names; all if not given.")
flags.mark_flags_as_required(["data", "output"])

QUANTIZER = "semantic_ids.quantizer."
VARIANTS = {
  "paper-mse": ("paper", {"semantic_ids.reconstruction": "mse"}),
  "paper-mmd": ("paper", {}),
  "paper-both": ("paper", {"semantic_ids.reconstruction": "both"}),
  "paper-kernels": ("paper", {"semantic_ids.bandwidths": (1 / 32, 1 / 8, 0.5, 2.0)}),
  "ours": ("best", {}),
  "ours-mmd": ("best", {"semantic_ids.reconstruction": "mmd"}),
  "ours-both": ("best", {"semantic_ids.reconstruction": "both"}),
  "ours-unscaled": ("best", {"semantic_ids.standardize": False}),
  "ours-by-gradient": ("best", {QUANTIZER + "learning": "gradient"}),
  "ours-no-revival": ("best", {QUANTIZER + "revival": 0.0}),
  "ours-no-alignment": ("best", {"semantic_ids.alignment": "none"}),
  "kmeans": ("best", {QUANTIZER + "kind": "kmeans"}),
  "fsq": ("best", {QUANTIZER + "kind": "fsq"}),
}


def main(argv: list[str]) -> None:
  del argv
  output = pathlib.Path(OUTPUT.value)
  for name in (names := ONLY.value or list(VARIANTS)):
    if name not in VARIANTS:
      near = command_line.nearest_name(name, [*VARIANTS])
      raise UserError(f"--variants={name}: unknown; did you mean {near}?")
  found = {name: examined(name, output) for name in names}
  print(table(found))
  write(output / "semantic_id_quality.json", {"environment": environment(), "variants": found})


def examined(name: str, output: pathlib.Path) -> dict:
  """Health and tau of the variant, which is trained unless it is there."""
  from mmesid_jax import pipeline
  from mmesid_jax.config.schema import default_config
  from mmesid_jax.reports import id_report

  preset, changes = VARIANTS[name]
  config = default_config(preset)
  config.data.dir, config.seed = DATA.value, SEED.value
  config.features.update(text="text.npy", collaborative=COLLABORATIVE.value)
  own = COLLABORATIVE.value == "stage"
  config.stages = ("collaborative", "semantic_ids") if own else ("semantic_ids",)
  config.update_from_flattened_dict(changes)
  for change in SET.value:
    key, _, value = change.partition("=")
    config.update_from_flattened_dict({key: json.loads(value)})
  workdir = pipeline.run_pipeline(
    config, output / name, others=[output / n for n in VARIANTS if n != name]
  )
  figures = id_report.examine_semantic_ids(workdir)
  health, tau = figures["health"], figures["tau"]
  return {
    m: {
      "usage": [level["usage"] for level in one.get("levels", [])],
      "perplexity": [level["perplexity"] for level in one.get("levels", [])],
      "collision_rate": one["collision_rate"],
      "tau": tau[m]["quantized"]["mean"] if m in tau else None,
    }
    for m, one in health.items()
  }


def table(found: dict[str, dict]) -> str:
  lines = [f"{'variant':18}{'codes':15}{'tau':>7}{'collisions':>12}   usage by level"]
  for name, by_modality in found.items():
    for m, one in by_modality.items():
      tau = "" if one["tau"] is None else f"{one['tau']:.4f}"
      usage = "  ".join(f"{share:.0%}" for share in one["usage"])
      lines.append(f"{name:18}{m:15}{tau:>7}{one['collision_rate']:>12.2%}   {usage}".rstrip())
  return "\n".join(lines)


if __name__ == "__main__":
  command_line.run_command(main)
