"""Reads the architecture of a backbone from a Hugging Face config.json, and writes one."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from mmesid_jax.errors import UserError
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.models.llama import LlamaConfig, RopeScaling

LARGEST = 10**6  # of any size: more is no backbone, and a number of layers would take all memory


class Family(NamedTuple):
  """An architecture's parts besides Llama's, and the meaning of its config.json where a field is
  absent.

  Args:
    loads: the models of users that are of it.
    causal_lm: its class in transformers, with the head.
    qkv_bias, head_norms: as in LlamaConfig.
    head_dim: where the field is absent; None = hidden_size / num_attention_heads.
    kv_heads: num_key_value_heads where the field is absent; None = num_attention_heads.
    window: the field that turns the window on: "sliding_window", its width, where it is not null;
      "use_sliding_window", from layer max_window_layers on; or "", as there is none.
  """

  loads: str
  causal_lm: str
  qkv_bias: bool = False
  head_norms: bool = False
  head_dim: int | None = None
  kv_heads: int | None = None
  window: str = ""


# model_type -> what differs, as in transformers 5: models/*/configuration_*.py and modeling_*.py.
FAMILIES = {
  "llama": Family("Llama 2, 3, 3.1 and 3.2, SmolLM2", "LlamaForCausalLM"),
  "mistral": Family("Mistral", "MistralForCausalLM", kv_heads=8, window="sliding_window"),
  "qwen2": Family(
    "Qwen2 and 2.5", "Qwen2ForCausalLM", qkv_bias=True, kv_heads=32, window="use_sliding_window"
  ),
  "qwen3": Family(
    *("Qwen3", "Qwen3ForCausalLM"),
    head_norms=True,
    head_dim=128,
    kv_heads=32,
    window="use_sliding_window",
  ),
}
WINDOW, FULL_LAYERS = 4096, 28  # sliding_window and max_window_layers where they are absent
SLIDING, FULL = "sliding_attention", "full_attention"  # entries of layer_types


def read_architecture(directory: pathlib.Path) -> LlamaConfig:
  """The architecture from directory/config.json; weights, compute and lora stay default.

  Reads `rope_parameters` (transformers 5) as well as `rope_theta` and `rope_scaling`. Raises
  UserError for a file that is missing or describes none of FAMILIES, and for one with parts that
  this project does not have.
  """
  file = directory / "config.json"
  c = read_json_object(file, missing="name the directory of a Hugging Face checkpoint")

  def refuse(field: str, expected: str) -> NoReturn:
    raise UserError(f"{file}: {field} is {_shown(c.get(field))}, expected {expected}")

  kind = c.get("model_type")
  if not isinstance(kind, str) or kind not in FAMILIES:
    refuse("model_type", "one of " + ", ".join(f"{k} ({f.loads})" for k, f in FAMILIES.items()))
  family = FAMILIES[kind]
  for field in ("mlp_bias",) if family.qkv_bias else ("attention_bias", "mlp_bias"):
    if c.get(field):
      refuse(field, "none of it: the only biases here are those of q, k and v in qwen2")
  if c.get("quantization_config"):
    refuse(
      "quantization_config",
      "none: take the checkpoint before it was quantized, and set recommender.backbone.weights",
    )
  if c.get("hidden_act", "silu") != "silu":
    refuse("hidden_act", "'silu'")

  def size(field: str, *, absent: int | None = None, null: int | None = None) -> int:
    value = c.get(field, absent)
    value = null if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
      refuse(field, f"an integer from 1 to {LARGEST}")
    return value

  D, N = size("hidden_size"), size("num_attention_heads")
  K = size("num_key_value_heads", absent=family.kv_heads, null=N)
  if N % K:
    refuse("num_key_value_heads", f"a divisor of num_attention_heads = {N}")
  if c.get("head_dim") is None and not family.head_dim and D % N:
    refuse("head_dim", f"a number, as hidden_size = {D} is no multiple of {N} heads")
  H = size("head_dim", absent=family.head_dim, null=None if family.head_dim else D // N)
  if H % 2:
    refuse("head_dim", "an even number, which rotary positions need")
  epsilon = c.get("rms_norm_eps", 1e-6)
  if not _is_within(epsilon, 1e-30, 1):
    refuse("rms_norm_eps", "a number > 0, at most 1")
  theta, scaling = _rope(c, refuse)
  layers, window = size("num_hidden_layers"), None
  if _has_window(c, family, layers, refuse):
    window = size("sliding_window", absent=WINDOW)
  return LlamaConfig(
    layers=layers,
    D=D,
    F=size("intermediate_size"),
    N=N,
    K=K,
    H=H,
    rope_theta=theta,
    rope_scaling=scaling,
    norm_eps=float(epsilon),
    qkv_bias=family.qkv_bias,
    head_norms=family.head_norms,
    window=window,
  )


def _has_window(c: dict[str, Any], family: Family, layers: int, refuse: Callable) -> bool:
  """Whether all layers have a window; refuses one of some layers only."""
  if not family.window:
    for field in ("sliding_window", "use_sliding_window"):
      if c.get(field):
        refuse(field, "none of it: llama has no window")
  is_on = bool(family.window) and c.get("sliding_window", WINDOW) is not None
  by_layer = family.window == "use_sliding_window"
  if by_layer:
    if not isinstance(c.get("use_sliding_window"), bool | None):
      refuse("use_sliding_window", "true or false")
    is_on = is_on and bool(c.get("use_sliding_window"))
  kinds = c.get("layer_types")
  if kinds is not None:
    same = isinstance(kinds, list) and len(kinds) == layers and all(k == kinds[0] for k in kinds)
    wanted = (FULL,) if not is_on else (SLIDING, FULL) if by_layer else (SLIDING,)
    if not same or kinds[0] not in wanted:
      expected = f"{layers} times {' or '.join(map(repr, wanted))}"
      refuse("layer_types", f"{expected}: a window that only some layers have does not load")
    return kinds[0] == SLIDING
  if not by_layer or not is_on:
    return is_on
  full = c.get("max_window_layers", FULL_LAYERS)
  if not isinstance(full, int) or 0 < full < layers:
    refuse(
      "max_window_layers",
      f"0 or {layers}: a window that only some layers have does not load",
    )
  return full <= 0


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
  thetas = [holder["rope_theta"] for holder in (rope, c) if holder.get("rope_theta") is not None]
  theta = thetas[0] if thetas else 10_000.0
  if not _is_within(theta, 1, 1e15):
    refuse(field if "rope_theta" in rope else "rope_theta", "a rope_theta from 1 to 1e15")
  if thetas and thetas[-1] != theta:
    refuse("rope_theta", f"the same as in {field}")
  kind = rope.get("rope_type", rope.get("type"))
  if kind == "default" or not rope.keys() - {"rope_theta", "partial_rotary_factor"}:
    return float(theta), None
  if kind != "llama3":
    refuse(field, "rope_type 'default' or 'llama3'")
  length = rope.get("original_max_position_embeddings") or c.get("max_position_embeddings")
  numbers = [rope.get(name) for name in ("factor", "low_freq_factor", "high_freq_factor")]
  if not all(_is_within(x, 1e-6, 1e6) for x in numbers) or not _is_within(length, 1, 1e9):
    refuse(field, "numbers for factor, low_freq_factor, high_freq_factor and the original length")
  if not numbers[1] < numbers[2]:
    refuse(field, "a low_freq_factor below high_freq_factor")
  return float(theta), RopeScaling(*map(float, numbers), int(length))


def _is_within(x: Any, low: float, high: float) -> bool:
  """Whether it is a number of these bounds, which leave out what float32 cannot compute with."""
  return isinstance(x, int | float) and not isinstance(x, bool) and low <= x <= high


def _shown(value: Any) -> str:
  """The value, cut to what fits into a line."""
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:200]}..."


def architecture_json(c: LlamaConfig, *, vocabulary: int, dtype: str) -> dict[str, Any]:
  """The content of config.json for a backbone of these sizes, embeddings tied, for transformers.

  Its model_type is the first of FAMILIES that has the parts of `c`. Raises ValueError where none
  has all of them.
  """
  kind = _family_of(c)
  rope: dict[str, Any] = {"rope_theta": c.rope_theta, "rope_type": "default"}
  if (s := c.rope_scaling) is not None:
    rope |= {
      "rope_type": "llama3",
      "factor": s.factor,
      "low_freq_factor": s.low_frequency_factor,
      "high_freq_factor": s.high_frequency_factor,
      "original_max_position_embeddings": s.original_length,
    }
  window: dict[str, Any] = {"sliding_window": c.window} if FAMILIES[kind].window else {}
  if FAMILIES[kind].window == "use_sliding_window":
    window |= {"use_sliding_window": c.window is not None, "max_window_layers": 0}
  return {
    "architectures": [FAMILIES[kind].causal_lm],
    "model_type": kind,
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
    **window,
    "tie_word_embeddings": True,
    "vocab_size": vocabulary,
    "dtype": dtype,
  }


def _family_of(c: LlamaConfig) -> str:
  for kind, family in FAMILIES.items():
    parts = (family.qkv_bias, family.head_norms)
    if parts == (c.qkv_bias, c.head_norms) and (family.window or c.window is None):
      return kind
  raise ValueError(f"no architecture has the parts of {c}")
