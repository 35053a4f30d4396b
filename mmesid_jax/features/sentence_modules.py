"""Reads a sentence-transformers directory: its pooling, and the layers after it.

`modules.json` lists modules in their order, each with a folder: a Transformer, its Pooling, and any
number of Dense and Normalize. Nothing is imported by the names in it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import parse_json, read_bytes, read_json_object
from mmesid_jax.hf.safetensors_dir import Checkpoint

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
INCOMPLETE = f"{MODULES} names it: download the whole directory"
TRANSFORMERS = ("Transformer", "CLIPModel")
# Modes of Pooling, in the order in which several are concatenated, and their names here.
POOLINGS = {
  "cls": "cls",
  "max": "max",
  "mean": "mean",
  "mean_sqrt_len_tokens": "mean_sqrt",
  "weightedmean": "weighted_mean",
  "lasttoken": "last",
}
OLD_KEYS = {  # of one setting for each mode
  "pooling_mode_cls_token": "cls",
  "pooling_mode_max_tokens": "max",
  "pooling_mode_mean_tokens": "mean",
  "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
  "pooling_mode_weightedmean_tokens": "weightedmean",
  "pooling_mode_lasttoken": "lasttoken",
}


def _gelu(x: np.ndarray) -> np.ndarray:
  from scipy.special import ndtr  # heavy

  return x * ndtr(x).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "Tanh": np.tanh,
  "Identity": lambda x: x,
  "ReLU": lambda x: np.maximum(x, 0),
  "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
  "GELU": _gelu,
}


class Dense(NamedTuple):
  """A layer of float32 weights [out, in], an optional bias, and the name of its activation."""

  folder: Path
  weight_DV: np.ndarray
  bias_D: np.ndarray | None
  activation: str

  def __call__(self, x_BV: np.ndarray) -> np.ndarray:
    """Returns [B, D]. Raises UserError for vectors of another width."""
    if x_BV.shape[1] != self.weight_DV.shape[1]:
      raise UserError(
        f"{self.folder}: reads vectors {self.weight_DV.shape[1]} wide, but the pooling gives "
        f"{x_BV.shape[1]}; leave out --pooling"
      )
    x_BD = x_BV @ self.weight_DV.T
    return ACTIVATIONS[self.activation](x_BD if self.bias_D is None else x_BD + self.bias_D)

  def __str__(self) -> str:
    width_out, width_in = self.weight_DV.shape
    return f"Dense {width_in} to {width_out} ({self.activation})"


class Normalize(NamedTuple):
  """Gives every vector length 1."""

  def __call__(self, x_BV: np.ndarray) -> np.ndarray:
    return x_BV / np.maximum(np.linalg.norm(x_BV, axis=1, keepdims=True), 1e-12)

  def __str__(self) -> str:
    return "Normalize"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceModules:
  """How a directory wants its model to be used; the defaults are those of a plain model."""

  transformer: Path  # folder of config.json, weights and tokenizer
  folders: tuple[Path, ...]  # of all modules, where they exist
  is_plain: bool = True  # there is no modules.json
  pooling: str | None = None  # with + between several; None: not stated
  layers: tuple[Dense | Normalize, ...] = ()  # after the pooling
  max_tokens: int | None = None  # where texts are cut
  lower_case: bool = False  # of texts, before they are tokenized
  prompt: str = ""  # stands before every text

  def describe(self, pooling: str) -> str:
    """The line for the user: this pooling, then what follows it."""
    instead = f" (not {self.pooling}, by --pooling)" if self.pooling not in (None, pooling) else ""
    prompt = f"; every text begins with {self.prompt!r}" if self.prompt else ""
    return ", ".join([f"pooling {pooling}{instead}", *map(str, self.layers)]) + prompt


def read_sentence_modules(directory: Path) -> SentenceModules:
  """Reads what modules.json names; without that file, the directory is a plain model.

  Raises UserError for a module, or a setting of one, that is not implemented here.
  """
  file = directory / MODULES
  if not file.is_file():
    return SentenceModules(transformer=directory, folders=(directory,))
  modules = [(_kind(file, module), _folder(file, module)) for module in _read_list(file)]
  if not modules or modules[0][0] not in TRANSFORMERS:
    raise UserError(f"{file}: expected a Transformer as the first module")
  pooling, layers, include_prompt = None, [], True
  for place, (kind, folder) in enumerate(modules[1:], 1):
    if kind == "Pooling" and place == 1:
      pooling, include_prompt = _read_pooling(folder / "config.json")
    elif kind == "Dense":
      layers.append(_read_dense(folder))
    elif kind == "Normalize":
      if (folder / "config.json").is_file():  # since version 5
        _require_sentence_vectors(folder / "config.json")
      layers.append(Normalize())
    else:
      raise UserError(
        f"{file}: {kind} as module {place} is not implemented; expected Transformer, Pooling, then "
        "Dense and Normalize. Make the vectors with sentence-transformers, and read them with "
        "mmesid_jax.vectors"
      )
  transformer = modules[0][1]
  prompt = _read_prompt(directory / PROMPTS)
  if prompt and not include_prompt:
    raise UserError(f"{modules[1][1]}: a pooling that leaves the prompt out is not implemented")
  return SentenceModules(
    transformer=transformer,
    folders=tuple(folder for folder in {directory, *(f for _, f in modules)} if folder.is_dir()),
    is_plain=False,
    pooling=pooling,
    layers=tuple(layers),
    prompt=prompt,
    **_read_transformer(transformer),
  )


def _read_list(file: Path) -> list[Mapping[str, Any]]:
  try:
    modules = parse_json(read_bytes(file))
  except ValueError as error:
    raise UserError(f"{file}: not JSON ({error}); download it again") from None
  if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
    raise UserError(f"{file}: expected a list of objects, each with a type and a path")
  return modules


def _kind(file: Path, module: Mapping[str, Any]) -> str:
  """The module's class. Raises UserError for code that is not of sentence-transformers."""
  name = module.get("type")
  if not isinstance(name, str) or not name.startswith("sentence_transformers."):
    raise UserError(f"{file}: the module {name!r} is code of its own, which is not run here")
  return name.rpartition(".")[2]


def _folder(file: Path, module: Mapping[str, Any]) -> Path:
  path = module.get("path", "")
  if not isinstance(path, str) or PurePath(path).is_absolute() or ".." in PurePath(path).parts:
    raise UserError(f"{file}: the path {path!r} is not a folder in this directory")
  return file.parent / path


def _read_pooling(file: Path) -> tuple[str, bool]:
  """Returns the pooling, known or not, and whether the tokens of a prompt take part in it."""
  config = read_json_object(file, missing=INCOMPLETE)
  modes = config.get("pooling_mode")
  if modes is None:
    named = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    order = [*OLD_KEYS, *named]
    modes = [OLD_KEYS.get(key, key) for key in sorted(named, key=order.index)] or ["mean"]
  modes = [modes] if isinstance(modes, str) else modes
  if not isinstance(modes, list) or not modes or not all(isinstance(m, str) for m in modes):
    raise UserError(f"{file}: expected pooling_mode as a name or a list of names")
  return "+".join(POOLINGS.get(m, m) for m in modes), config.get("include_prompt") is not False


def _read_dense(folder: Path) -> Dense:
  config = read_json_object(folder / "config.json", missing=INCOMPLETE)
  _require_sentence_vectors(folder / "config.json")
  if config.get("use_residual"):
    raise UserError(f"{folder / 'config.json'}: use_residual is not implemented")
  name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
  activation = str(name).rpartition(".")[2]
  if not str(name).startswith("torch.nn.") or activation not in ACTIVATIONS:
    raise UserError(
      f"{folder / 'config.json'}: the activation {name} is not implemented; expected one of "
      f"torch.nn's {', '.join(ACTIVATIONS)}"
    )
  checkpoint = Checkpoint(folder)
  keys = ["linear.weight", *(["linear.bias"] if config.get("bias", True) else [])]
  if sorted(checkpoint.keys()) != sorted(keys):
    raise UserError(f"{folder}: expected the tensors {' and '.join(keys)}, and no others")
  for key in keys:
    checkpoint.require_floats(key)
  weight, *bias = (checkpoint.read(key).astype(np.float32) for key in keys)
  if weight.ndim != 2 or any(b.shape != weight.shape[:1] for b in bias):
    raise UserError(f"{folder}: linear.weight and linear.bias do not fit each other")
  return Dense(folder, weight, bias[0] if bias else None, activation)


def _require_sentence_vectors(file: Path) -> None:
  """Raises UserError for a module that reads or writes anything but the pooled vector."""
  config = read_json_object(file)
  for key in ("module_input_name", "module_output_name"):
    if (name := config.get(key)) not in (None, "sentence_embedding"):
      raise UserError(f"{file}: {key} {name!r} is not implemented; expected sentence_embedding")


def _read_prompt(file: Path) -> str:
  """Returns the text that stands before every other by default."""
  if not file.is_file():
    return ""
  config = read_json_object(file)
  name, prompts = config.get("default_prompt_name"), config.get("prompts")
  if name is None:
    return ""
  prompt = prompts.get(name) if isinstance(prompts, dict) else None
  if not isinstance(prompt, str):
    raise UserError(f"{file}: prompts holds no text for default_prompt_name, {name!r}")
  return prompt


def _read_transformer(folder: Path) -> dict[str, Any]:
  """Returns max_tokens and lower_case of sentence_bert_config.json, or its like."""
  files = sorted(folder.glob("sentence_*_config.json"), key=lambda f: "_bert_" not in f.name)
  if not files:
    return {}
  config = read_json_object(files[0])
  if (task := config.get("transformer_task")) not in (None, "feature-extraction"):
    raise UserError(f"{files[0]}: transformer_task {task!r} is not implemented")
  length = config.get("max_seq_length")
  if length is not None and (not isinstance(length, int) or length < 1):
    raise UserError(f"{files[0]}: max_seq_length {length!r}: expected a whole number >= 1")
  return {"max_tokens": length, "lower_case": bool(config.get("do_lower_case"))}
