"""The backbone of the recommender: its sizes, pretrained weights and adapters."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.files.digest import file_sha256, files_sha256
from mmesid_jax.hf import adapter, llama_weights, prompt
from mmesid_jax.hf.architecture import read_architecture
from mmesid_jax.hf.safetensors_dir import Checkpoint
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.layers.weight_quantization import BLOCK
from mmesid_jax.models.llama import Llama, LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.parallel.variables import Frozen, Pretrained

SIZES = {  # key of config.recommender -> field of LlamaConfig
  "width": "D",
  "layers": "layers",
  "heads": "N",
  "kv_heads": "K",
  "head_width": "H",
  "mlp_width": "F",
  "rope_theta": "rope_theta",
  "norm_eps": "norm_eps",
}


def resolve_sizes(config: ConfigDict, *, estimate: bool = False) -> bool:
  """Sets the sizes in config.recommender that are 0 to those of the checkpoint, if there is one.

  With a prompt text, prompt.length and prompt.response become the numbers of its tokens, and a
  preset's text gets the chat form of a checkpoint of another family. Sizes that are not 0 must
  agree, but layers may be fewer: the first of the checkpoint. estimate: without a tokenizer, the
  numbers of tokens are estimated. Returns whether they were. Raises UserError.
  """
  c = config.recommender
  if not c.backbone.checkpoint:
    return False
  directory = pathlib.Path(c.backbone.checkpoint)
  architecture = read_architecture(directory)
  found = {key: getattr(architecture, field) for key, field in SIZES.items()}
  if 0 < c.layers < found["layers"]:
    found["layers"] = c.layers  # the first layers alone
  _fill(c, found, directory / "config.json")
  if not c.prompt.text:
    return False
  if estimate and not prompt.has_tokenizer(directory):
    if c.prompt.length:  # as the user says
      return False
    c.prompt.update(prompt.estimate_prompt_lengths(c.prompt.text))
    return True
  c.prompt.text = prompt.fit_prompt(directory, c.prompt.text)
  tokens = prompt.tokenize_prompt(directory, c.prompt.text)
  counts = {"length": len(tokens.before), "response": len(tokens.after)}
  _fill(c.prompt, counts, "the tokenizer")
  return False


def check_checkpoint(config: ConfigDict) -> None:
  """Raises UserError unless checkpoint and adapter fit the resolved configuration. Reads only their
  headers."""
  c = config.recommender
  if not c.backbone.checkpoint:
    return
  if (pathlib.Path(c.backbone.checkpoint) / adapter.CONFIG).is_file() and not c.lora.start:
    reporter.warn(
      f"{c.backbone.checkpoint}: the adapter beside the weights is not read; to start from it, set "
      f"--config.recommender.lora.start={c.backbone.checkpoint}"
    )
  check_storage(c)
  llama = nnx.eval_shape(lambda: Llama(llama_config(c), rngs=nnx.Rngs(0)))
  llama_weights.check_keys(llama, Checkpoint(c.backbone.checkpoint))
  if c.lora.start:
    adapter.check_adapter(llama, pathlib.Path(c.lora.start))


def check_storage(c: ConfigDict) -> None:
  """Raises UserError where quantized weights do not divide into whole blocks."""
  if c.backbone.kind != "full" and c.backbone.weights in ("int8", "nf4"):
    heads = ("heads * head_width", c.heads * c.head_width)  # input of the output projection
    for key, width in (("width", c.width), ("mlp_width", c.mlp_width), heads):
      if width % BLOCK:
        raise UserError(
          f"--config.recommender.backbone.weights={c.backbone.weights}: wants {key}={width} in "
          f"blocks of {BLOCK}; take bfloat16"
        )


def _fill(section: ConfigDict, found: dict[str, float], source) -> None:
  if different := [k for k, v in found.items() if section[k] and section[k] != v]:
    asked = ", ".join(f"{k}={section[k]}" for k in different)
    says = ", ".join(f"{k}={found[k]}" for k in different)
    raise UserError(f"--config.recommender: {asked}, but {source} says {says}; 0 takes that")
  section.update({k: type(section[k])(v) for k, v in found.items()})


def llama_config(c: ConfigDict) -> LlamaConfig:
  """The backbone's configuration from config.recommender = c, whose sizes are resolved.

  A checkpoint's config.json adds what no key says: scaled rotation, biases, norms of heads, window.
  """
  lora = None
  if c.backbone.kind == "lora":
    lora = LoRAConfig(
      rank=c.lora.rank,
      alpha=c.lora.alpha,
      dropout=c.lora.dropout,
      rslora=c.lora.rslora,
      targets=tuple(c.lora.targets),
    )
  sizes = {field: c[key] for key, field in SIZES.items()}
  if c.backbone.checkpoint:
    base = read_architecture(pathlib.Path(c.backbone.checkpoint))
  else:
    base = LlamaConfig(**sizes)
  return dataclasses.replace(
    base,
    **sizes,
    dropout=c.dropout,
    weights="trained" if c.backbone.kind == "full" else c.backbone.weights,
    compute=c.backbone.compute,
    remat=c.backbone.remat,
    unroll=c.backbone.unroll,
    attention=c.backbone.attention,
    lora=lora,
  )


def check_backbone_divides(c: ConfigDict) -> None:
  """Raises UserError where the mesh of the context does not divide the sizes in
  config.recommender = c."""
  axes = {"width": "embed", "heads": "heads", "kv_heads": "kv_heads", "mlp_width": "mlp"}
  for key, axis in axes.items():
    sharding.check_divides(f"--config.recommender.{key}", c[key], axis)


def load_backbone(model: RecommenderModel, c: ConfigDict) -> None:
  """Reads the weights, and the vectors of a prompt text, from the checkpoint into the model."""
  if not c.backbone.checkpoint:
    return
  checkpoint = Checkpoint(c.backbone.checkpoint)
  llama_weights.load_weights(model.backbone, checkpoint)
  if c.prompt.text:
    tokens = prompt.tokenize_prompt(checkpoint.directory, c.prompt.text)
    model.prompt_PD.set_value(jnp.asarray(prompt.read_embeddings(checkpoint, tokens.before)))
    if tokens.after:
      model.response_SD.set_value(jnp.asarray(prompt.read_embeddings(checkpoint, tokens.after)))


def prepare_backbone(model: RecommenderModel, c: ConfigDict) -> None:
  """Prepares the model for training: loads its weights and adapter, places it on the mesh."""
  load_backbone(model, c)
  if c.backbone.kind == "lora":
    if c.lora.start:
      adapter.read_adapter(model.backbone, pathlib.Path(c.lora.start))
    reporter.info(adapter.describe_adapter(model.backbone))
  place_model(model)
  reporter.info(memory_line(model))


def export_adapter(model: RecommenderModel, c: ConfigDict, directory: pathlib.Path) -> None:
  """Writes the trained LoRA factors as a PEFT directory; nothing without LoRA."""
  if c.backbone.kind == "lora":
    adapter.write_adapter(model.backbone, directory, base=c.backbone.checkpoint)


def memory_line(model: RecommenderModel) -> str:
  """The memory of the model on each device, by what it is for, in one line."""
  trained = nnx.state(model, nnx.Param)
  frozen = nnx.state(model.backbone, Pretrained)
  tables = nnx.state(model, nnx.All(Frozen, nnx.Not(Pretrained)))
  line = f"memory a device: trained {_mib(trained)}, gradient and AdamW {_mib(trained, 3)}"
  if jax.tree.leaves(frozen):
    stored = sum(x.nbytes for x in jax.tree.leaves(frozen))
    a_parameter = stored / model.backbone.config.parameters
    line += f", frozen backbone {_mib(frozen)} ({a_parameter:.2f} bytes a parameter)"
  return f"{line}, tables {_mib(tables)}; activations come on top"


def _mib(state: nnx.State, times: int = 1) -> str:
  held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
  return f"{times * held / 2**20:,.1f} MiB"


def backbone_fingerprint(c: ConfigDict) -> dict[str, str]:
  """Digests of the files that the artifact depends on; {} without a checkpoint.

  "checkpoint": of config.json, tokenizer and all weights. "adapter": of the adapter's weights.
  """
  if not c.backbone.checkpoint:
    return {}
  found = {"checkpoint": files_sha256(Checkpoint(c.backbone.checkpoint).files())}
  if c.lora.start:
    found["adapter"] = file_sha256(pathlib.Path(c.lora.start) / adapter.WEIGHTS)
  return found


def check_backbone(c: ConfigDict, trained_on: Mapping[str, str], artifact: pathlib.Path) -> None:
  """Raises UserError where the checkpoint is not the one that an artifact was trained on.

  trained_on: `backbone_fingerprint` at that time, as the artifact's header holds it.
  """
  found = backbone_fingerprint(c)
  if found.get("checkpoint") != trained_on.get("checkpoint"):
    raise UserError(
      f"{c.backbone.checkpoint}: its files are not those that {artifact} was trained on; put these "
      "back, or train again with --overwrite"
    )
