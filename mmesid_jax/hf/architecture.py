"""Reads a Llama's architecture from a Hugging Face config.json, and writes one."""

import json
import pathlib
from typing import Any

from mmesid_jax.errors import UserError
from mmesid_jax.models.llama import LlamaConfig, RopeScaling


def read_architecture(directory: pathlib.Path) -> LlamaConfig:
  """Sizes, rotation and norm from directory/config.json; weights, compute and lora stay default.

  Reads `rope_parameters` (transformers 5) as well as `rope_theta` and `rope_scaling`; head_dim may
  be given or derived. Raises UserError for a file that is missing or does not describe a Llama, and
  for a Llama with parts that this project does not have.
  """
  file = directory / "config.json"
  if not file.is_file():
    raise UserError(f"{file}: no such file; name the directory of a Hugging Face checkpoint")
  try:
    c = json.loads(file.read_text())
    kind = c.get("model_type")
  except (ValueError, AttributeError) as error:
    raise UserError(f"{file}: not a JSON object ({error}); download it again") from error

  def refuse(field: str, expected: str):
    raise UserError(f"{file}: {field} is {c.get(field)!r}, expected {expected}")

  if kind != "llama":
    refuse("model_type", "'llama' (Llama 3, 3.1 and 3.2 load; other architectures do not)")
  for field in ("attention_bias", "mlp_bias", "sliding_window", "use_sliding_window"):
    if c.get(field):
      refuse(field, "none of it: this project's blocks have neither biases nor windows")
  if c.get("hidden_act", "silu") != "silu":
    refuse("hidden_act", "'silu'")

  def size(field: str, default: int | None = None) -> int:
    value = c.get(field)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      refuse(field, "an integer >= 1")
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
    norm_eps=float(c.get("rms_norm_eps", 1e-6)),
  )


def _rope(c: dict[str, Any], refuse) -> tuple[float, RopeScaling | None]:
  field = "rope_parameters" if c.get("rope_parameters") else "rope_scaling"
  rope = c.get(field) or {}
  if not isinstance(rope, dict):
    refuse(field, "an object")
  theta = float(rope.get("rope_theta") or c.get("rope_theta") or 10_000.0)
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind == "default":
    return theta, None
  if kind != "llama3":
    refuse(field, "rope_type 'default' or 'llama3'")
  try:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    length = rope.get("original_max_position_embeddings") or c["max_position_embeddings"]
    return theta, RopeScaling(*(float(rope[name]) for name in names), int(length))
  except (KeyError, TypeError, ValueError):
    refuse(field, "numbers for factor, low_freq_factor, high_freq_factor and the original length")


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
