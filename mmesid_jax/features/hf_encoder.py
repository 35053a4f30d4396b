"""Encoders of a local Hugging Face directory: safetensors only, and no code that comes with it."""

import contextlib
import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from mmesid_jax.errors import UserError
from mmesid_jax.hf.safetensors_dir import Checkpoint


def import_extra(name: str) -> ModuleType:
  """A library of the extra `encode`. Raises UserError where it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    if error.name != name.split(".")[0]:
      raise  # installed, and broken
    raise UserError(
      f'{name} is not installed, which encodes: pip install "mmesid_jax[encode]"'
    ) from None


class HFEncoder:
  """A model that turns a batch into vectors, in bfloat16 on a GPU, in float32 on the CPU.

  What gives vectors of its own for texts or images (CLIP, SigLIP: `get_text_features`,
  `get_image_features`) is asked for them. Of any other model the last hidden states are pooled:
  their `mean` over the tokens that are no padding, the first one (`cls`), the `last` one that is
  no padding, or the model's own `pooler`.
  """

  def __init__(self, directory: Path, *, features: str, pooling: str | None, default: str):
    """features: the method of a model with vectors of its own; default: the pooling of others.

    Raises UserError for a directory that is missing, holds pickles, needs code of its own or is not
    of one piece, and for a pooling that the model has not.
    """
    torch = import_extra("torch")
    Checkpoint(directory)  # what is missing, cut short or pickled is told here
    self.directory = directory
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
    with explain_load_errors(directory, "model"):
      import transformers

      model, report = transformers.AutoModel.from_pretrained(
        directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL_ONLY
      )
    self._features = getattr(model, features, None)
    if self._features is not None and pooling is not None:
      raise UserError(
        f"--pooling={pooling}: {directory} has vectors of its own ({features}); leave it out"
      )
    self.pooling = features if self._features is not None else pooling or default
    _require_all_weights(directory, report, self.pooling)
    self.config = model.config
    if getattr(model.config, "is_encoder_decoder", False):
      model = model.get_encoder()
    self._model = model.eval().to(self.device)

  def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [B, V] of what the tokenizer or image processor made. Raises UserError where the
    GPU's memory is too small, or a vector is not finite."""
    import torch

    given = {name: self._tensor(torch.from_numpy(x)) for name, x in inputs.items()}
    try:
      with torch.inference_mode():
        x_BV = self._vectors(given).flatten(1).float().cpu().numpy()
    except torch.OutOfMemoryError:
      raise UserError(
        "the GPU's memory is too small for this batch; try a smaller --batch"
      ) from None
    if not np.isfinite(x_BV).all():
      raise UserError(f"{self.directory}: makes vectors that hold NaN or infinity")
    return x_BV

  def _tensor(self, x):
    return x.to(self.device, self._model.dtype if x.is_floating_point() else x.dtype)

  def _vectors(self, given):
    if self._features is not None:
      found = self._features(**given)
      return getattr(found, "pooler_output", found)  # a tensor, before transformers 5
    output = self._model(**given)
    if self.pooling == "pooler":
      if getattr(output, "pooler_output", None) is None:
        raise UserError(f"--pooling=pooler: {self.directory} has none; try --pooling=cls")
      return output.pooler_output
    return pool_tokens(output.last_hidden_state.float(), given.get("attention_mask"), self.pooling)


def pool_tokens(x_BTD, mask_BT, pooling: str):
  """[B, D] of hidden states, of tokens that are no padding; without a mask none is."""
  import torch

  if mask_BT is None:
    mask_BT = torch.ones(x_BTD.shape[:2], dtype=torch.long, device=x_BTD.device)
  if pooling == "mean":
    mask_BT1 = mask_BT[..., None].to(x_BTD.dtype)
    return (x_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
  place_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand_as(mask_BT)
  last = {"cls": 0, "last": 1}[pooling]
  place_B = place_BT.masked_fill(mask_BT == 0, -1).max(1).values * last
  return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), place_B]


def _require_all_weights(directory: Path, report: Mapping[str, Any], pooling: str) -> None:
  """transformers fills what a checkpoint lacks with random numbers."""
  lacking = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
  if pooling != "pooler":
    lacking = {name for name in lacking if not name.startswith("pooler.")}
  elif any(name.startswith("pooler.") for name in lacking):
    raise UserError(f"--pooling=pooler: {directory} holds no weights of it; try --pooling=cls")
  if lacking:
    raise UserError(
      f"{directory}: holds no weights for {sorted(lacking)[0]} ({len(lacking)} such tensors); its "
      "config.json is of another model"
    )


# Nothing is downloaded, and no code is run that lies beside the weights.
LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}


@contextlib.contextmanager
def explain_load_errors(directory: Path, part: str) -> Iterator[None]:
  """Raises UserError for what transformers says of a directory whose `part` does not load."""
  logging = import_extra("transformers").utils.logging
  logging.set_verbosity_error()
  logging.disable_progress_bar()
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # many kinds, for files that are damaged or of another model
    if "trust_remote_code" in str(error):
      raise UserError(
        f"{directory}: needs code of its own, which is not run here; export its vectors with that "
        "code and read them with mmesid_jax.vectors"
      ) from error
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    raise UserError(f"{directory}: its {part} does not load ({reason})") from error


def digest_directory(directory: Path) -> str:
  """Hex sha256 over names and bytes of the files that decide the vectors."""
  suffixes = (".json", ".txt", ".model", ".safetensors")
  files = sorted(file for file in directory.iterdir() if file.suffix in suffixes)
  digests = {}
  for path in tqdm(files, f"reading {directory}", delay=3, leave=False):
    with path.open("rb") as file:
      digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
  return digest_json(digests)


def digest_json(value: Any) -> str:
  """Hex sha256 of its JSON."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()
