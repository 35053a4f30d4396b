"""Reads a Llama's architecture from a Hugging Face config.json, and writes one."""

import math
import pathlib
from typing import Any, NoReturn

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.models.llama import LlamaConfig, RopeScaling

LARGEST = 10**6  # of any size: more is no Llama, and a number of layers would take all memory


def read_architecture(directory: pathlib.Path) -> LlamaConfig:
  """Sizes, rotation and norm from directory/config.json; weights, compute and lora stay default.

  Reads `rope_parameters` (transformers 5) as well as `rope_theta` and `rope_scaling`; head_dim may
  be given or derived. Raises UserError for a file that is missing or does not describe a Llama, and
  for a Llama with parts that this project does not have.
  """
  file = directory / "config.json"
  c = read_json_object(file, missing="name the directory of a Hugging Face checkpoint")

  def refuse(field: str, expected: str) -> NoReturn:
    raise UserError(f"{file}: {field} is {_shown(c.get(field))}, expected {expected}")

  if c.get("model_type") != "llama":
    refuse("model_type", "'llama' (Llama 3, 3.1 and 3.2 load; other architectures do not)")
  for field in ("attention_bias", "mlp_bias", "sliding_window", "use_sliding_window"):
    if c.get(field):
      refuse(field, "none of it: this project's blocks have neither biases nor windows")
  if c.get("quantization_config"):
    refuse(
      "quantization_config",
      "none: take the checkpoint before it was quantized, and set recommender.backbone.weights",
    )
  if c.get("hidden_act", "silu") != "silu":
    refuse("hidden_act", "'silu'")

  def size(field: str, default: int | None = None) -> int:
    value = c.get(field)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
      refuse(field, f"an integer from 1 to {LARGEST}")
    return value

  D, N = size("hidden_size"), size("num_attention_heads")
  K = size("num_key_value_heads", N)
  if N % K:
    refuse("num_key_value_heads", f"a divisor of num_attention_heads = {N}")
  if c.get("head_dim") is None and D % N:
    refuse("head_dim", f"a number, as hidden_size = {D} is no multiple of {N} heads")
  H = size("head_dim", D // N)
  if H % 2:
    refuse("head_dim", "an even number, which rotary positions need")
  epsilon = c.get("rms_norm_eps", 1e-6)
  if not _is_positive(epsilon):
    refuse("rms_norm_eps", "a number > 0")
  theta, scaling = _rope(c, refuse)
  return LlamaConfig(
    layers=size("num_hidden_layers"),
    D=D,
    F=size("intermediate_size"),
    N=N,
    K=K,
    H=H,
    rope_theta=theta,
    rope_scaling=scaling,
    norm_eps=float(epsilon),
  )


def _rope(c: dict[str, Any], refuse) -> tuple[float, RopeScaling | None]:
  field = "rope_parameters" if c.get("rope_parameters") else "rope_scaling"
  rope = c.get(field) or {}
  if not isinstance(rope, dict):
    refuse(field, "an object")
  if c.get("rope_scaling") and c["rope_scaling"] != rope:
    refuse("rope_scaling", "the same as in rope_parameters")
  for holder, name in ((c, "partial_rotary_factor"), (rope, field)):
    if holder.get("partial_rotary_factor", 1) != 1:
      refuse(name, "whole heads that rotate, a partial_rotary_factor of 1")
  thetas = (holder["rope_theta"] for holder in (rope, c) if holder.get("rope_theta") is not None)
  theta = next(thetas, 10_000.0)
  if not _is_positive(theta):
    refuse(field if "rope_theta" in rope else "rope_theta", "a rope_theta > 0")
  kind = rope.get("rope_type", rope.get("type"))
  if kind == "default" or not rope.keys() - {"rope_theta", "partial_rotary_factor"}:
    return float(theta), None
  if kind != "llama3":
    refuse(field, "rope_type 'default' or 'llama3'")
  length = rope.get("original_max_position_embeddings") or c.get("max_position_embeddings")
  numbers = [rope.get(name) for name in ("factor", "low_freq_factor", "high_freq_factor")]
  if not all(_is_positive(x) for x in (*numbers, length)):
    refuse(field, "numbers for factor, low_freq_factor, high_freq_factor and the original length")
  return float(theta), RopeScaling(*map(float, numbers), int(length))


def _is_positive(x: Any) -> bool:
  """Whether it is a finite number > 0 that a float holds."""
  if not isinstance(x, int | float) or isinstance(x, bool):
    return False
  return 0 < x < 1e300 and math.isfinite(x)


def _shown(value: Any) -> str:
  """The value, cut to what fits into a line."""
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:200]}..."


def architecture_json(c: LlamaConfig, *, vocabulary: int, dtype: str) -> dict[str, Any]:
  """The content of config.json for a Llama of these sizes, embeddings tied, for transformers."""
  rope: dict[str, Any] = {"rope_theta": c.rope_theta, "rope_type": "default"}
  if (s := c.rope_scaling) is not None:
    rope |= {
      "rope_type": "llama3",
      "factor": s.factor,
      "low_freq_factor": s.low_frequency_factor,
      "high_freq_factor": s.high_frequency_factor,
      "original_max_position_embeddings": s.original_length,
    }
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": c.D,
    "intermediate_size": c.F,
    "num_hidden_layers": c.layers,
    "num_attention_heads": c.N,
    "num_key_value_heads": c.K,
    "head_dim": c.H,
    "rms_norm_eps": c.norm_eps,
    "hidden_act": "silu",
    "rope_parameters": rope,
    "rope_theta": c.rope_theta,  # for transformers before version 5
    "tie_word_embeddings": True,
    "vocab_size": vocabulary,
    "dtype": dtype,
  }
