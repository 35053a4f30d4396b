"""Runs an encoder from a local Hugging Face directory: safetensors only, and none of its code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.features.sentence_modules import MODULES, POOLINGS, read_sentence_modules
from mmesid_jax.files.digest import file_sha256, json_sha256
from mmesid_jax.hf.pretrained import LOCAL_ONLY, explain_load_errors, import_extra
from mmesid_jax.hf.safetensors_dir import Checkpoint

ADAPTER = "adapter_config.json"


class HFEncoder:
  """A model that turns a batch into vectors, in bfloat16 on a GPU, in float32 on the CPU.

  A model with its own vectors for texts or images (CLIP, SigLIP: `get_text_features`,
  `get_image_features`) returns those. For any other model the last hidden states are pooled, as
  pool_tokens does or by the model's own `pooler`. A directory of sentence-transformers says how,
  and which layers follow; a `pooling` that is given replaces its pooling, and the layers stay.
  """

  def __init__(self, directory: Path, *, features: str, pooling: str | None, default: str):
    """Loads the model.

    Args:
      directory: config.json and safetensors.
      features: the method of models with their own vectors.
      pooling: for other models; None for what the directory says, and else `default`.
      default: the pooling when none is stated.

    Raises UserError for a directory that is missing, incomplete, holds pickles or needs its own
    code, for a pooling that the model does not have, and as read_sentence_modules does.
    """
    torch = import_extra("torch")
    self.directory = directory
    self.modules = read_sentence_modules(directory)
    transformer = self.modules.transformer
    check_files(transformer)
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
    with explain_load_errors(directory, "model"):
      import transformers

      model, report = transformers.AutoModel.from_pretrained(
        transformer, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL_ONLY
      )
    self._features = getattr(model, features, None)
    if self._features is not None and pooling not in (None, features):  # as `pooling` says it
      raise UserError(
        f"--pooling={pooling}: {directory} has vectors of its own ({features}); leave it out"
      )
    self.pooling = self._choose_pooling(features, pooling, default)
    _require_all_weights(directory, report, self.pooling)
    self.config = model.config
    if getattr(model.config, "is_encoder_decoder", False):
      model = model.get_encoder()
    self._model = model.eval().to(self.device)
    if not self.modules.is_plain:
      reporter.info(f"{directory / MODULES}: {self.modules.describe(self.pooling)}")

  def _choose_pooling(self, features: str, given: str | None, default: str) -> str:
    """Returns the name of the pooling. Raises UserError where modules.json does not fit."""
    file, stated = self.directory / MODULES, self.modules.pooling
    if self._features is not None:
      if stated is not None:
        raise UserError(f"{file}: names a Pooling, but the model has vectors of its own")
      return features
    if not self.modules.is_plain and not (given or stated):
      raise UserError(f"{file}: names no Pooling for this model; choose one with --pooling")
    if not given and stated and (unknown := {*stated.split("+")} - {*POOLINGS.values()}):
      raise UserError(
        f"{file}: the pooling {min(unknown)!r} is not implemented; choose one with --pooling"
      )
    return given or stated or default

  def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns float32 [B, V] for the output of the tokenizer or image processor.

    Raises UserError if the GPU's memory is too small or a vector is not finite.
    """
    import torch

    tensors = {name: self._to_device(torch.from_numpy(x)) for name, x in inputs.items()}
    try:
      with torch.inference_mode():
        x_BV = self._vectors(tensors).flatten(1).float().cpu().numpy()
      for layer in self.modules.layers:
        x_BV = layer(x_BV)
    except torch.OutOfMemoryError:
      raise UserError(
        "the GPU's memory is too small for this batch; try a smaller --batch"
      ) from None
    if not np.isfinite(x_BV).all():
      raise UserError(f"{self.directory}: its vectors hold NaN or infinity")
    return x_BV

  def _to_device(self, x):
    return x.to(self.device, self._model.dtype if x.is_floating_point() else x.dtype)

  def _vectors(self, tensors):
    if self._features is not None:
      output = self._features(**tensors)
      return getattr(output, "pooler_output", output)  # a tensor before transformers 5
    output = self._model(**tensors)
    if self.pooling == "pooler":
      if getattr(output, "pooler_output", None) is None:
        raise UserError(f"--pooling=pooler: {self.directory} has none; try --pooling=cls")
      return output.pooler_output
    return pool_tokens(
      output.last_hidden_state.float(), tensors.get("attention_mask"), self.pooling
    )


def check_files(directory: Path) -> None:
  """Raises UserError for missing, incomplete, pickled or quantized files, and for an adapter."""
  checkpoint = Checkpoint(directory)
  for key in checkpoint.keys():
    if key.endswith((".weight", ".bias")):
      checkpoint.require_floats(key)
  if (directory / ADAPTER).is_file():
    raise UserError(
      f"{directory / ADAPTER}: makes transformers read the weights of another folder; merge the "
      "adapter into its base (peft: merge_and_unload, save_pretrained), or remove this file"
    )


def pool_tokens(x_BTD, mask_BT, pooling: str):
  """Returns [B, D] from hidden states, without padding tokens; no mask means no padding."""
  import torch

  if "+" in pooling:
    return torch.cat([pool_tokens(x_BTD, mask_BT, name) for name in pooling.split("+")], 1)
  if mask_BT is None:
    mask_BT = torch.ones(x_BTD.shape[:2], dtype=torch.long, device=x_BTD.device)
  mask_BT1 = mask_BT[..., None].to(x_BTD.dtype)
  if pooling == "max":
    return x_BTD.masked_fill(mask_BT1 == 0, -torch.inf).max(1).values
  if pooling == "weighted_mean":
    mask_BT1 = mask_BT1 * torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)[:, None]
  if pooling in ("mean", "mean_sqrt", "weighted_mean"):
    total_B1 = mask_BT1.sum(1)
    return (x_BTD * mask_BT1).sum(1) / (total_B1.sqrt() if pooling == "mean_sqrt" else total_B1)
  place_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand_as(mask_BT)
  last = {"cls": 0, "last": 1}[pooling]
  place_B = place_BT.masked_fill(mask_BT == 0, -1).max(1).values * last
  return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), place_B]


def _require_all_weights(directory: Path, report: Mapping[str, Any], pooling: str) -> None:
  """Raises UserError for missing weights, which transformers would fill with random numbers."""
  missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
  if pooling != "pooler":
    missing = {name for name in missing if not name.startswith("pooler.")}
  elif any(name.startswith("pooler.") for name in missing):
    raise UserError(f"--pooling=pooler: {directory} holds no weights for it; try --pooling=cls")
  if missing:
    raise UserError(
      f"{directory}: holds no weights for {sorted(missing)[0]} ({len(missing)} such tensors); its "
      "config.json belongs to another model"
    )


def model_sha256(directory: Path) -> str:
  """Returns the hex sha256 over names and bytes of the files that determine the vectors."""
  suffixes = (".json", ".txt", ".model", ".safetensors")
  folders = read_sentence_modules(directory).folders
  files = sorted(f for folder in folders for f in folder.iterdir() if f.suffix in suffixes)
  digests = {}
  for path in reporter.progress(files, f"read {directory}", unit="files"):
    digests[str(path.relative_to(directory))] = file_sha256(path)
  return json_sha256(digests)
