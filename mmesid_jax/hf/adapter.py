"""LoRA factors as a PEFT directory, out and in: what PyTorch users load with `peft`."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mmesid_jax.errors import UserError
from mmesid_jax.hf.llama_weights import TABLE, layer_of
from mmesid_jax.models.llama import Llama

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# our projection -> Hugging Face's name of it
PEFT_NAME = {e.path.split(".")[-1]: e.key.split(".")[-2] for e in TABLE if "norm" not in e.path}


def describe(llama: Llama) -> str:
  """How many projections are adapted, and with how many parameters."""
  layers = [lora for _, lora in _adapted(llama)]
  count = len(layers) * llama.config.layers
  size = sum(x.a[...].size + x.b[...].size for x in layers)
  return f"LoRA: matched {count:,} projections, {size / 1e6:.2f} M parameters"


def write_adapter(llama: Llama, directory: pathlib.Path, *, base: str) -> None:
  """adapter_config.json and adapter_model.safetensors; replaces an adapter that is there.

  base: name or path of the checkpoint, as peft is to load it.
  """
  c = llama.config.lora
  named = {}
  for key, lora in _adapted(llama):
    a_LIR = np.asarray(jax.device_get(lora.a[...]))
    b_LRO = np.asarray(jax.device_get(lora.b[...])).reshape(*a_LIR.shape[::2], -1)
    for i in range(llama.config.layers):
      module = PREFIX + key.format(i).removesuffix(".weight")
      named[f"{module}.lora_A.weight"] = np.ascontiguousarray(a_LIR[i].T)
      named[f"{module}.lora_B.weight"] = np.ascontiguousarray(b_LRO[i].T)
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
  temporary = directory.with_name(directory.name + ".tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  safetensors.numpy.save_file(named, temporary / WEIGHTS, metadata={"format": "pt"})
  (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
  shutil.rmtree(directory, ignore_errors=True)
  os.replace(temporary, directory)


def read_adapter(llama: Llama, directory: pathlib.Path) -> None:
  """Sets the LoRA factors from a PEFT directory of the same rank, scale and targets.

  Raises UserError for files that are missing or damaged, an adapter of another kind, rank or scale,
  or of a base with other sizes.
  """
  _check_config(llama, directory)
  file = directory / WEIGHTS
  try:
    found = safetensors.numpy.load_file(file)
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise UserError(f"{file}: not a whole safetensors file ({error})") from error
  wanted = {}
  for key, lora in _adapted(llama):
    for i in range(llama.config.layers):
      module = PREFIX + key.format(i).removesuffix(".weight")
      wanted[f"{module}.lora_A.weight"] = (lora.a, i)
      wanted[f"{module}.lora_B.weight"] = (lora.b, i)
  if different := sorted(wanted.keys() ^ found.keys()):
    side = "missing" if different[0] in wanted else "not of this model"
    raise UserError(f"{file}: {different[0]} is {side}; it was trained on another base")
  values = {id(v): np.empty(v.shape, np.float32) for v, _ in wanted.values()}
  for name, (variable, i) in wanted.items():
    place = values[id(variable)][i]
    theirs = found[name].T
    if theirs.shape != (len(place), place[0].size):
      raise UserError(
        f"{file}: {name} has shape {found[name].shape}, this base and rank want "
        f"{(place[0].size, len(place))}"
      )
    place[...] = theirs.reshape(place.shape)
  for variable, _ in wanted.values():
    variable.set_value(jnp.asarray(values[id(variable)]))


def _adapted(llama: Llama):
  """(Hugging Face's key, LoRA) of every adapted projection, all layers stacked."""
  for entry in TABLE:
    if (lora := getattr(layer_of(llama, entry), "lora", None)) is not None:
      yield entry.key, lora


def _check_config(llama: Llama, directory: pathlib.Path) -> None:
  file = directory / CONFIG
  if not file.is_file():
    raise UserError(f"{file}: no such file; name the directory of a PEFT adapter")
  try:
    theirs = json.loads(file.read_text())
    theirs.get("r")
  except (ValueError, AttributeError) as error:
    raise UserError(f"{file}: not a JSON object ({error})") from error
  if not (directory / WEIGHTS).is_file():
    raise UserError(f"{directory}: holds no {WEIGHTS}; pickled adapters are not opened")
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
  for field in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
    if theirs.get(field):
      raise UserError(f"{file}: {field} is set, which this project does not read")
  modules = theirs.get("target_modules")
  ours = {PEFT_NAME[name] for name in c.targets}
  if not isinstance(modules, list) or set(modules) != ours:
    raise UserError(f"{file}: target_modules is {modules!r}, the configuration has {sorted(ours)}")
