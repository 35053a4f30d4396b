"""Measures the cost of storing a frozen backbone in 8 or 4 bits: python benchmarks/quantization.py
--workdir=runs/quickstart --output=runs/quantization

Exports the backbone that the workdir trained to a Hugging Face directory, loads it back frozen in
every kind of storage, and trains LoRA and the recommender's other parts around it for 200 steps:
same seed, same batches. Prints a table and writes OUTPUT/quantization.json.
"""

import json
import pathlib
import shutil

from absl import flags

from mmesid_jax.config import command_line
from mmesid_jax.config.saved import read_config

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that mmesid_jax.train wrote.")
OUTPUT = flags.DEFINE_string("output", None, "A new folder for the export, the runs and figures.")
flags.mark_flags_as_required(["workdir", "output"])

KINDS = ("float32", "bfloat16", "int8", "nf4")
STEPS, AVERAGED = 200, 20  # the loss is the mean over the last so many steps
SIZES = (
  "width",
  "layers",
  "heads",
  "kv_heads",
  "head_width",
  "mlp_width",
  "rope_theta",
  "norm_eps",
)


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.files import artifact
  from mmesid_jax.reports import export_backbone

  workdir, output = pathlib.Path(WORKDIR.value), pathlib.Path(OUTPUT.value)
  export_backbone.export_backbone(workdir, output / "backbone")
  rows = {kind: {**storage(output / "backbone", kind)} for kind in KINDS}
  for kind in KINDS:
    rows[kind] |= trained(workdir, output, kind)
  reference = rows["bfloat16"]["loss"]
  print(f"\n{'':9} bytes/weight  weight error  layer error   loss  to bfloat16  nDCG@5")
  for kind, row in rows.items():
    row["to_bfloat16"] = row["loss"] / reference - 1
    print(
      f"{kind:9} {row['bytes']:12.3f} {row['weight_error']:13.2%} {row['layer_error']:12.2%} "
      f"{row['loss']:6.4f} {row['to_bfloat16']:12.2%} {row['nDCG@5']:7.4f}"
    )
  artifact.write_text(output / "quantization.json", json.dumps(rows, indent=1) + "\n")


def storage(checkpoint: pathlib.Path, kind: str) -> dict[str, float]:
  """Bytes a weight; error of the weights, and of a feed-forward's output for normal inputs, as a
  part of their norm; means over the layers."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from mmesid_jax.hf.architecture import read_architecture
  from mmesid_jax.hf.safetensors_dir import Checkpoint
  from mmesid_jax.models.layers.weight_quantization import dequantize_weight, quantize_weight

  def kept(weight):
    if kind in ("int8", "nf4"):
      codes, scale = quantize_weight(weight, kind)
      return np.asarray(dequantize_weight(codes, scale, kind)), codes.nbytes + scale.nbytes
    stored = weight.astype(kind)
    return np.asarray(stored, np.float32), stored.nbytes

  def feed_forward(x, gate, up, down):
    return jax.nn.silu(x @ gate) * (x @ up) @ down

  def error(found, expected):
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))

  source, weight_errors, layer_errors = Checkpoint(checkpoint), [], []
  config = read_architecture(checkpoint)
  x = jax.random.normal(jax.random.key(0), (256, config.D))
  size = weights = 0
  for i in range(config.layers):
    names = (f"model.layers.{i}.mlp.{n}_proj.weight" for n in ("gate", "up", "down"))
    exact = [jnp.asarray(source.read(name).T, jnp.float32) for name in names]
    stored = [kept(weight) for weight in exact]
    size += sum(n for _, n in stored)
    weights += sum(weight.size for weight in exact)
    weight_errors += [error(k, w) for (k, _), w in zip(stored, exact, strict=True)]
    layer_errors.append(error(feed_forward(x, *(k for k, _ in stored)), feed_forward(x, *exact)))
  return {
    "bytes": size / weights,
    "weight_error": float(np.mean(weight_errors)),
    "layer_error": float(np.mean(layer_errors)),
  }


def trained(workdir: pathlib.Path, output: pathlib.Path, kind: str) -> dict[str, float]:
  """Loss after STEPS steps and test nDCG@5 at the end of that epoch."""
  from mmesid_jax import pipeline

  path = output / kind
  shutil.rmtree(path, ignore_errors=True)
  path.mkdir(parents=True)
  for file in ("collaborative.safetensors", "semantic_ids.safetensors"):
    shutil.copy(workdir / file, path / file)
  config = read_config(workdir)
  config.stages = ("recommender",)
  r = config.recommender
  r.backbone.kind, r.backbone.weights = "lora", kind
  r.backbone.checkpoint = str(output / "backbone")
  r.epochs = 7  # of 32 batches
  config.run.log_every = AVERAGED
  pipeline.run_pipeline(config, path)
  lines = map(json.loads, (path / "recommender" / "metrics.jsonl").read_text().splitlines())
  losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
  test = json.loads((path / "evaluation.json").read_text())["models"]["MME-SID"]
  return {"loss": losses[STEPS], "nDCG@5": test["masked"]["nDCG@5"]["mean"]}


if __name__ == "__main__":
  command_line.run_command(main)
