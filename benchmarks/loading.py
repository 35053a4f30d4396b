"""What loading a checkpoint takes of the host: python benchmarks/loading.py --output=runs/loading

Writes a random checkpoint of Llama 3.2 1B's sizes (2.3 GiB), once, and loads it in every kind of
storage, on one device and sharded over eight. On CPU the devices' arrays are host memory as well,
so a column tells what was taken beyond them. Prints a table and writes OUTPUT/loading.json.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import time

from absl import flags
from host_memory import host_peak

from mmesid_jax.config import command_line

OUTPUT = flags.DEFINE_string("output", None, "A folder for the checkpoint and the figures.")
flags.mark_flags_as_required(["output"])

KINDS = ("bfloat16", "int8", "nf4")
VOCABULARY = 128_256
MESHES = {"one device": None, "fsdp 8": {"fsdp": 8}}


def main(argv: list[str]) -> None:
  del argv
  from mmesid_jax.files import artifact

  os.environ["JAX_NUM_CPU_DEVICES"] = "8"
  output = pathlib.Path(OUTPUT.value)
  checkpoint = output / "llama-1b"
  if not checkpoint.exists():
    write(checkpoint)
  # A fresh process each: what an earlier load freed would hide what a later one takes.
  fresh = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
  with concurrent.futures.ProcessPoolExecutor(1, **fresh) as pool:
    rows = [
      {"weights": kind, "mesh": mesh, **pool.submit(loaded, checkpoint, kind, sizes).result()}
      for mesh, sizes in MESHES.items()
      for kind in KINDS
    ]
  print("\nweights   mesh           s  read GiB  arrays GiB  beyond GiB")
  for r in rows:
    print(
      f"{r['weights']:9} {r['mesh']:10} {r['seconds']:5.1f} {r['read']:9.2f} {r['arrays']:11.2f} "
      f"{r['beyond']:11.2f}"
    )
  artifact.write_text(output / "loading.json", json.dumps(rows, indent=1) + "\n")


def write(directory: pathlib.Path) -> None:
  import ml_dtypes
  import numpy as np
  from flax import nnx

  from mmesid_jax.hf.architecture import architecture_json
  from mmesid_jax.hf.llama_weights import EMBEDDING, expected_tensors
  from mmesid_jax.hf.safetensors_dir import write_checkpoint
  from mmesid_jax.models.llama import Llama, LlamaConfig

  c = LlamaConfig(layers=16, D=2048, F=8192, N=32, K=8, H=64)
  llama = nnx.eval_shape(lambda: Llama(c, rngs=nnx.Rngs(0)))
  shapes = {key: shape for key, (_, shape) in expected_tensors(llama).items()}
  rng = np.random.default_rng(0)

  def tensors():
    for key, shape in {EMBEDDING: (VOCABULARY, c.D), **shapes}.items():
      yield key, (0.02 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)

  write_checkpoint(
    directory, tensors(), architecture_json(c, vocabulary=VOCABULARY, dtype="bfloat16")
  )


def loaded(directory: pathlib.Path, kind: str, sizes: dict[str, int] | None) -> dict[str, float]:
  """Seconds, and GiB: read from the files, held by the arrays, taken beyond them at the peak."""
  import jax
  from flax import nnx

  from mmesid_jax.hf.architecture import read_architecture
  from mmesid_jax.hf.llama_weights import load_weights
  from mmesid_jax.hf.safetensors_dir import Checkpoint
  from mmesid_jax.models.llama import Llama
  from mmesid_jax.parallel.mesh import make_mesh

  c = dataclasses.replace(read_architecture(directory), weights=kind)
  llama = nnx.eval_shape(lambda: Llama(c, rngs=nnx.Rngs(0)))
  checkpoint, start = Checkpoint(directory), time.monotonic()
  with host_peak() as taken:
    with jax.set_mesh(make_mesh(**(sizes or {}))):
      load_weights(llama, checkpoint)
    jax.block_until_ready(jax.tree.leaves(nnx.state(llama)))
  arrays = sum(x.nbytes for x in jax.tree.leaves(nnx.state(llama)))
  return {
    "seconds": time.monotonic() - start,
    "read": checkpoint.bytes_read / 2**30,
    "arrays": arrays / 2**30,
    "beyond": (taken["bytes"] - arrays) / 2**30,
  }


if __name__ == "__main__":
  command_line.run_command(main)
