"""Converts weights between Hugging Face's layout and ours, by one table for both directions.

Hugging Face stores a linear layer as [out, in], this project as [layer, in, *out]. Rotation and
scale of the queries are the same, so weights are only transposed and stacked. Mistral, Qwen2 and
Qwen3 have Llama's names, and Qwen's biases and norms of heads in addition.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.hf.architecture import read_architecture
from mmesid_jax.hf.safetensors_dir import Checkpoint
from mmesid_jax.models.layers.weight_quantization import BLOCK, QuantizedWeight, quantize_weight
from mmesid_jax.models.llama import Llama, LlamaConfig
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.mesh import FSDP, TENSOR, is_partitioned
from mmesid_jax.parallel.placement import check_shape_divides

EMBEDDING = "model.embed_tokens.weight"
UNUSED = (EMBEDDING, "lm_head.weight")  # a prompt's rows are read separately; logits are not used
# Tables that older conversions stored, which follow from config.json; transformers skips them too.
ROTATION = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.\w+")
PREFIX = "model."


@dataclasses.dataclass(frozen=True)
class Entry:
  """A part of a block: its path in our module, and its key in Hugging Face's file with {} for the
  layer's number; part: "weight" or "bias" of a projection, "scale" of a norm."""

  path: str
  key: str
  part: str = "weight"


TABLE = (  # of every architecture
  Entry("norm_attention", "model.layers.{}.input_layernorm.weight", "scale"),
  Entry("attention.q", "model.layers.{}.self_attn.q_proj.weight"),
  Entry("attention.k", "model.layers.{}.self_attn.k_proj.weight"),
  Entry("attention.v", "model.layers.{}.self_attn.v_proj.weight"),
  Entry("attention.out", "model.layers.{}.self_attn.o_proj.weight"),
  Entry("norm_mlp", "model.layers.{}.post_attention_layernorm.weight", "scale"),
  Entry("mlp.gate", "model.layers.{}.mlp.gate_proj.weight"),
  Entry("mlp.up", "model.layers.{}.mlp.up_proj.weight"),
  Entry("mlp.down", "model.layers.{}.mlp.down_proj.weight"),
)
BIASES = tuple(
  Entry(f"attention.{x}", f"model.layers.{{}}.self_attn.{x}_proj.bias", "bias") for x in "qkv"
)
HEAD_NORMS = tuple(
  Entry(f"attention.norm_{x}", f"model.layers.{{}}.self_attn.{x}_norm.weight", "scale")
  for x in "qk"
)
FINAL_NORM = "model.norm.weight"


def entries(c: LlamaConfig) -> tuple[Entry, ...]:
  """All parts of a block of this architecture."""
  return TABLE + (BIASES if c.qkv_bias else ()) + (HEAD_NORMS if c.head_norms else ())


def layer_of(llama: Llama, entry: Entry) -> nnx.Module:
  """The projection or norm of an entry, with all layers stacked."""
  module = llama.blocks
  for name in entry.path.split("."):
    module = getattr(module, name)
  return module


def weight_of(llama: Llama, entry: Entry) -> nnx.Variable | QuantizedWeight:
  """The weight, bias or scale that an entry names, with all layers stacked."""
  return getattr(layer_of(llama, entry), entry.part)


def _shape(weight: nnx.Variable | QuantizedWeight) -> tuple[int, ...]:
  """The shape [layer, in, *out] of the weight, also where it is stored as codes."""
  if isinstance(weight, QuantizedWeight):
    layers, blocks, *out = weight.scale.shape
    return (layers, blocks * BLOCK, *out)
  return weight.shape


def _hf_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
  """One layer's shape in Hugging Face's layout, from ours."""
  is_matrix = entry.part == "weight"
  return (math.prod(shape[1:]), shape[0]) if is_matrix else (math.prod(shape),)


def expected_tensors(llama: Llama) -> dict[str, tuple[str, tuple[int, ...]]]:
  """Hugging Face's key -> the path in our module that it fills, and the shape that it must have."""
  wanted: dict[str, tuple[str, tuple[int, ...]]] = {FINAL_NORM: ("norm", llama.norm.scale.shape)}
  for entry in entries(llama.config):
    shape = _hf_shape(entry, _shape(weight_of(llama, entry))[1:])
    path = entry.path + (".bias" if entry.part == "bias" else "")
    for i in range(llama.config.layers):
      wanted[entry.key.format(i)] = (f"blocks.{path}[{i}]", shape)
  return wanted


def check_keys(llama: Llama, checkpoint: Checkpoint) -> None:
  """Checks names and shapes of all tensors, reading headers only.

  Raises UserError, which names both sides, unless every weight is filled, every tensor is used, in
  UNUSED, of ROTATION, or of a layer after the last that the backbone takes, and all shapes are
  equal.
  """
  layers = read_architecture(checkpoint.directory).layers
  found = {key for key in checkpoint.keys() if not ROTATION.fullmatch(key)}
  if layers > len(found):
    raise UserError(
      f"{checkpoint.directory}: config.json wants {layers} layers, it holds {len(found)} tensors"
    )
  wanted = expected_tensors(llama)
  if other := other_prefix(found, wanted):
    there, expected = other
    raise UserError(
      f"{checkpoint.directory}: holds {there}, expected {expected}: the whole model, whose tensors "
      f"begin with {PREFIX!r}; save it with AutoModelForCausalLM's save_pretrained"
    )
  if missing := sorted(wanted.keys() - found):
    raise UserError(
      f"{checkpoint.directory}: {missing[0]} is missing ({len(missing)} tensors are), which fills "
      f"{wanted[missing[0]][0]}; config.json asks for {layers} layers"
    )
  later = {
    entry.key.format(i)
    for entry in entries(llama.config)
    for i in range(llama.config.layers, layers)
  }
  if unknown := sorted(found - wanted.keys() - later - set(UNUSED)):
    raise UserError(
      f"{checkpoint.directory}: {unknown[0]} fits no parameter ({len(unknown)} tensors do not); "
      f"config.json asks for {layers} layers {_describe_parts(llama.config)}"
    )
  for key, (path, shape) in wanted.items():
    if checkpoint.shape(key) != shape:
      raise UserError(
        f"{checkpoint.directory}: {key} has shape {checkpoint.shape(key)}, {path} wants {shape}"
      )
    checkpoint.require_floats(key)


def _describe_parts(c: LlamaConfig) -> str:
  biases = "biases of q, k and v only" if c.qkv_bias else "no biases"
  return f"with {biases}, and {'norms' if c.head_norms else 'no norms'} of heads"


def other_prefix(found: Collection[str], wanted: Collection[str]) -> tuple[str, str] | None:
  """A tensor that is there and the one that is wanted, where all differ by their prefix alone.

  As where a part of a model was saved, or more than it. None if the names have the right prefix, or
  are not those of such a model at all.
  """
  expected = min(key for key in wanted if ".layers." in key)
  if expected in found:
    return None
  bare = expected[expected.index("layers.") :]
  return next(((key, expected) for key in sorted(found) if f".{key}".endswith(f".{bare}")), None)


def load_weights(llama: Llama, checkpoint: Checkpoint) -> None:
  """Fills every weight of the backbone except LoRA; each device reads only its own slices.

  Slices that several devices hold are read once; the host holds one device's slice of one stacked
  weight at a time. Weights of a quantized backbone are quantized layer by layer while reading. They
  go to the mesh in use, or without one to the default device. Raises UserError as `check_keys`
  does.
  """
  check_keys(llama, checkpoint)
  _place(llama.norm.scale, "norm.scale", lambda *_: checkpoint.read(FINAL_NORM))
  parts = entries(llama.config)
  for entry in reporter.progress(parts, f"reading {checkpoint.directory}", unit="weights"):
    weight = weight_of(llama, entry)
    if isinstance(weight, QuantizedWeight):
      _load_quantized(weight, checkpoint, entry)
    else:
      _load_dense(weight, checkpoint, entry)


def _place(variable: nnx.Variable, path: str, read) -> None:
  """Fills the variable at `path` with read(*bounds) for every shard; equal bounds are read once."""
  shape = variable.shape
  if not is_partitioned():
    variable.set_value(jnp.asarray(read(*((0, n) for n in shape)), variable.dtype))
    return
  name = f"backbone.{path}"
  axes = sharding.logical_axes(name, len(shape))
  check_shape_divides(name, shape, axes)
  target = sharding.named_sharding(axes)
  holders: dict[tuple, list[jax.Device]] = {}
  for device, index in target.addressable_devices_indices_map(shape).items():
    bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
    holders.setdefault(bounds, []).append(device)
  pieces = []
  for bounds, devices in holders.items():
    piece = np.asarray(read(*bounds), variable.dtype)
    pieces += jax.block_until_ready([jax.device_put(piece, device) for device in devices])
  variable.set_value(jax.make_array_from_single_device_arrays(shape, target, pieces))


def _slab(checkpoint: Checkpoint, entry: Entry, i: int, *bounds) -> np.ndarray:
  """Layer i of the weight, cut to the bounds of [in, *out], transposed to our layout; or of a bias
  or scale, cut to those of [*out]."""
  *rows, (first, last) = bounds[: 2 if entry.part == "weight" else 1]
  widths = bounds[len(rows) + 1 :]  # of a head: heads are never divided
  inner = math.prod(b - a for a, b in widths)
  index = (slice(first * inner, last * inner), *(slice(*r) for r in rows))
  part = checkpoint.read(entry.key.format(i), *index)
  return part.T.reshape(*(b - a for a, b in bounds))


def _load_dense(weight: nnx.Variable, checkpoint: Checkpoint, entry: Entry) -> None:
  def read(layers, *bounds):
    piece = np.empty([b - a for a, b in (layers, *bounds)], weight.dtype)
    for i in range(*layers):
      piece[i - layers[0]] = _slab(checkpoint, entry, i, *bounds)
    return piece

  _place(weight, f"blocks.{entry.path}.{entry.part}", read)


def _load_quantized(weight: QuantizedWeight, checkpoint: Checkpoint, entry: Entry) -> None:
  shape = _shape(weight)
  per_code = shape[1] // weight.codes.shape[1]  # input rows that share a code byte
  scales: dict[tuple, np.ndarray] = {}

  def read(layers, rows, *out):
    rows = tuple(r * per_code for r in rows)
    if (rows[0] % BLOCK) or (rows[1] % BLOCK):
      raise UserError(
        f"{entry.path}: {weight.kind} wants whole blocks of {BLOCK} input rows a device; "
        f"a smaller mesh.{FSDP} or mesh.{TENSOR}, or bfloat16"
      )
    codes, scale = None, []
    for i in range(*layers):
      slab = _slab(checkpoint, entry, i, rows, *out)
      layer_codes, layer_scale = jax.device_get(quantize_weight(slab, weight.kind))
      if codes is None:
        codes = np.empty((layers[1] - layers[0], *layer_codes.shape), layer_codes.dtype)
      codes[i - layers[0]] = layer_codes
      scale.append(layer_scale)
    scales[(layers, tuple(r // BLOCK for r in rows), *out)] = np.stack(scale)
    return codes

  path = f"blocks.{entry.path}.weight"
  _place(weight.codes, f"{path}.codes", read)
  _place(weight.scale, f"{path}.scale", lambda *bounds: scales.pop(bounds))


def to_hugging_face(
  llama: Llama, source: Checkpoint | None = None
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (key, tensor) in Hugging Face's layout and dtype, layer by layer, with LoRA merged.

  LoRA is added in float32 before the cast. Embeddings and quantized weights, which the model does
  not hold in their original form, are read from `source`. Raises ValueError for quantized weights
  without a source.
  """
  for i in range(llama.config.layers):
    for entry in entries(llama.config):
      layer, key = layer_of(llama, entry), entry.key.format(i)
      weight = weight_of(llama, entry)
      if not isinstance(weight, QuantizedWeight):
        array = np.asarray(jax.device_get(weight[...][i]))
        array = array.reshape(len(array), -1).T if entry.part == "weight" else array.reshape(-1)
      elif source is not None:
        array = source.read(key)
      else:
        raise ValueError(f"{entry.path} is kept as {weight.kind}: name the checkpoint it came from")
      yield key, _merge_lora(array, layer, i) if entry.part == "weight" else array
  yield FINAL_NORM, np.asarray(jax.device_get(llama.norm.scale[...]))
  for key in UNUSED:
    if source is not None and key in source.keys():
      yield key, source.read(key)


def _merge_lora(array: np.ndarray, layer: nnx.Module, i: int) -> np.ndarray:
  """The weight [out, in] of layer i plus its LoRA update, in the weight's dtype."""
  lora = getattr(layer, "lora", None)
  if lora is None:
    return array
  a, b = (np.asarray(jax.device_get(factor[...][i])) for factor in (lora.a, lora.b))
  delta = lora.scale * (a @ b.reshape(len(b), -1)).T
  return (array.astype(np.float32) + delta).astype(array.dtype)
