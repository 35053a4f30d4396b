"""Writes and reads LoRA factors as a PEFT directory, which PyTorch users load with `peft`."""

import json
import math
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mmesid_jax.errors import UserError
from mmesid_jax.files.atomic import atomic_folder
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.files.tensor_file import TensorFile
from mmesid_jax.hf.llama_weights import TABLE, layer_of, other_prefix
from mmesid_jax.hf.safetensors_dir import FLOATS
from mmesid_jax.models.llama import Llama
from mmesid_jax.parallel.processes import main_only
from mmesid_jax.parallel.variables import LoRAParam

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# What LoraConfig's `init_lora_weights` may be. Other ways take a part out of the base's weights and
# put it into the adapter, which then fits that changed base only.
BASE_UNCHANGED = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Its fields that say nothing about the trained adapter's output. Any that is in no list here must
# have an empty value, those of later versions of peft too.
NO_EFFECT = (
  *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
  *("inference_mode", "lora_dropout", "fan_in_fan_out", "layers_pattern", "megatron_core"),
  *("qalora_group_size", "runtime_config", "velora_config"),
  *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # of init_lora_weights
)

# our name of a projection -> Hugging Face's
PEFT_NAME = {e.path.split(".")[-1]: e.key.split(".")[-2] for e in TABLE if e.part == "weight"}


def describe_adapter(llama: Llama) -> str:
  """One line with the number of adapted projections and of their parameters."""
  factors = list(_factors(llama))
  projections = sum(len(keys) for _, keys in factors) // 2
  size = sum(factor[...].size for factor, _ in factors)
  return f"LoRA: matched {projections:,} projections, {size / 1e6:.2f} M parameters"


@main_only
def write_adapter(llama: Llama, directory: pathlib.Path, *, base: str) -> None:
  """Writes adapter_config.json and adapter_model.safetensors, in the main process only.

  An adapter that is there stays until the new one is complete; other files in the directory stay.

  Args:
    llama: a backbone with LoRA factors.
    directory: where the two files go.
    base: name or path of the base checkpoint, from which peft is to load it.

  Raises UserError where the disk refuses the files.
  """
  c = llama.config.lora
  named = {}
  for factor, keys in _factors(llama):
    for key, layer in zip(keys, np.asarray(jax.device_get(factor[...])), strict=True):
      named[key] = np.ascontiguousarray(layer.reshape(len(layer), -1).T)
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": c.rank,
    "lora_alpha": c.alpha,
    "lora_dropout": c.dropout,
    "use_rslora": c.rslora,
    "target_modules": sorted({PEFT_NAME[name] for name in c.targets}),
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  with atomic_folder(directory, replaces=(CONFIG, WEIGHTS)) as temporary:
    safetensors.numpy.save_file(named, temporary / WEIGHTS, metadata={"format": "pt"})
    (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_adapter(llama: Llama, directory: pathlib.Path) -> None:
  """Sets the LoRA factors from a PEFT directory of the same rank, scale and targets.

  Raises UserError for files that are missing or damaged, for an adapter of another kind, rank or
  scale, and for one of a base with other sizes.
  """
  check_adapter(llama, directory)
  file = _open(directory)
  for factor, keys in _factors(llama):
    value = np.empty(factor.shape, np.float32)
    for key, layer in zip(keys, value, strict=True):
      layer[...] = file.read(key).T.reshape(layer.shape)
      if not np.isfinite(layer).all():
        raise UserError(f"{directory / WEIGHTS}: {key} holds values that are not finite")
    factor.set_value(jnp.asarray(value))


def check_adapter(llama: Llama, directory: pathlib.Path) -> None:
  """Raises UserError where `read_adapter` would, from the configuration, names and shapes only."""
  _check_config(llama, directory)
  wanted = {key: factor.shape for factor, keys in _factors(llama) for key in keys}
  file = _open(directory)
  if other := other_prefix(file.keys(), wanted):
    raise UserError(
      f"{file.path}: holds {other[0]}, expected {other[1]}; train it on AutoModelForCausalLM, or "
      "rename its tensors"
    )
  if different := sorted(wanted.keys() ^ set(file.keys())):
    side = "missing" if different[0] in wanted else "not of this model"
    raise UserError(f"{file.path}: {different[0]} is {side}; it was trained on another base")
  for key, (_, d_in, *d_out) in wanted.items():
    shape = (math.prod(d_out), d_in)
    if (actual := file.shape(key)) != shape:
      raise UserError(f"{file.path}: {key} has shape {actual}, this base and rank want {shape}")
    if (kind := file.type_name(key)) not in FLOATS:
      raise UserError(f"{file.path}: {key} holds {kind}, expected {', '.join(FLOATS)}")


def _open(directory: pathlib.Path) -> TensorFile:
  file = directory / WEIGHTS
  if not file.is_file():
    raise UserError(f"{directory}: holds no {WEIGHTS}; pickled adapters are not opened")
  return TensorFile(file)


def _factors(llama: Llama) -> Iterator[tuple[LoRAParam, list[str]]]:
  """Yields each factor [layer, d_in, *d_out] and its layers' keys in PEFT's file, [d_out, d_in]."""
  for entry in TABLE:
    if (lora := getattr(layer_of(llama, entry), "lora", None)) is not None:
      module = PREFIX + entry.key.removesuffix(".weight")
      for factor, name in ((lora.a, "lora_A"), (lora.b, "lora_B")):
        yield factor, [f"{module}.{name}.weight".format(i) for i in range(llama.config.layers)]


def _check_config(llama: Llama, directory: pathlib.Path) -> None:
  file = directory / CONFIG
  theirs = read_json_object(file, missing="name the directory of a PEFT adapter")
  c = llama.config.lora
  expected = {
    "peft_type": "LORA",
    "r": c.rank,
    "lora_alpha": c.alpha,
    "use_rslora": c.rslora,
    "bias": "none",
  }
  theirs = {"use_rslora": False, "bias": "none"} | theirs  # peft's defaults
  for field, value in expected.items():
    if theirs.get(field) != value:
      raise UserError(f"{file}: {field} is {theirs.get(field)!r}, the configuration has {value!r}")
  if (start := theirs.get("init_lora_weights")) not in BASE_UNCHANGED:
    raise UserError(
      f"{file}: init_lora_weights is {start!r}, which changes the base's weights too; convert it: "
      "peft's save_pretrained takes path_initial_model_for_weight_conversion"
    )
  modules = theirs.get("target_modules")
  ours = {PEFT_NAME[name] for name in c.targets}
  if not isinstance(modules, list) or set(map(str, modules)) != ours:
    raise UserError(f"{file}: target_modules is {modules!r}, the configuration has {sorted(ours)}")
  known = (*expected, "init_lora_weights", "target_modules", *NO_EFFECT)
  for field in sorted(theirs.keys() - known):
    if theirs[field]:
      raise UserError(f"{file}: {field} is set, expected plain LoRA without it")
