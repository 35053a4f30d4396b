"""Exports the trained backbone to a new directory that the library transformers can load."""

import itertools
import pathlib

import numpy as np
from ml_collections import ConfigDict

from mmesid_jax.config.saved import read_config
from mmesid_jax.display import reporter
from mmesid_jax.files.atomic import check_new_directory
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.hf.architecture import architecture_json
from mmesid_jax.hf.llama_weights import EMBEDDING, entries, to_hugging_face
from mmesid_jax.hf.safetensors_dir import Checkpoint, write_checkpoint
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.stages import recommender_stage


def export_backbone(workdir: pathlib.Path, output: pathlib.Path) -> None:
  """Writes the backbone of a workdir's recommender to the directory `output`.

  Raises UserError for a workdir without a trained recommender, or an output that exists.
  """
  check_new_directory(output)
  config = read_config(workdir)
  write_backbone(recommender_stage.load_recommender(workdir, config), config.recommender, output)
  reporter.info(f"wrote {output}")


def write_backbone(model: RecommenderModel, c: ConfigDict, output: pathlib.Path) -> None:
  """Writes the backbone of `model`, made from config.recommender = c.

  A backbone from a checkpoint keeps that checkpoint's config, tokenizer, embeddings and lm_head,
  which training does not change; LoRA is merged into the weights. A backbone trained from scratch
  gets the learned vectors of prompt and response as its embeddings: token i is vector i. Raises
  UserError when the output exists.
  """
  llama, source = model.backbone, None
  if c.backbone.checkpoint:
    source = Checkpoint(c.backbone.checkpoint)
    architecture = _architecture_of(source, llama.config)
    embeddings = []
  else:
    tables = [t for t in (model.prompt_PD, model.response_SD) if t is not None]
    table = np.concatenate([np.asarray(t[...]) for t in tables])
    architecture = architecture_json(llama.config, vocabulary=len(table), dtype="float32")
    embeddings = [(EMBEDDING, table)]
  tensors = reporter.progress(
    to_hugging_face(llama, source), "export", total=len(entries(llama.config)) * llama.config.layers
  )
  write_checkpoint(
    output,
    itertools.chain(embeddings, tensors),
    architecture,
    copy_from=source and source.directory,
  )


def _architecture_of(source: Checkpoint, llama: LlamaConfig) -> dict:
  """The source's config.json with the number of layers that were taken, and the dtype that the
  weights are stored in, unless quantized."""
  architecture = read_json_object(source.directory / "config.json")
  architecture["num_hidden_layers"] = llama.layers
  if isinstance(kinds := architecture.get("layer_types"), list):
    architecture["layer_types"] = kinds[: llama.layers]
  dtype = "float32" if llama.weights == "trained" else llama.weights
  if dtype in ("float32", "bfloat16"):
    architecture["torch_dtype" if "torch_dtype" in architecture else "dtype"] = dtype
  return architecture
