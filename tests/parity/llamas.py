"""Tiny models of all families: random ones of transformers saved as real checkpoints, and ours read
from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmesid_jax.config.schema import PROJECTIONS
from mmesid_jax.hf.architecture import read_architecture
from mmesid_jax.hf.llama_weights import load_weights
from mmesid_jax.hf.safetensors_dir import Checkpoint
from mmesid_jax.models.llama import Llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
  "vocab_size": 48,
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "rms_norm_eps": 3e-3,
  "attn_implementation": "eager",
}
THETA = {"rope_type": "default", "rope_theta": 500_000.0}
STRETCHED = {
  "rope_type": "llama3",
  "rope_theta": 10_000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
WINDOW = 9
LENGTH = 40  # tokens: past the 16 and the 9 above
CASES = {  # one or more of each family
  "Llama 2": {"num_key_value_heads": 4, "rope_parameters": {"rope_theta": 10_000.0}},
  "Llama 3": {},
  "Llama 3.1, stretched rotation": {"rope_parameters": STRETCHED},
  "Llama 3.2, tied embeddings": {"tie_word_embeddings": True, "rope_parameters": STRETCHED},
  "SmolLM2": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
  "wide heads": {"head_dim": 24},
  "Mistral": {"family": "Mistral", "sliding_window": None, "head_dim": 24},
  "Mistral, window": {"family": "Mistral", "sliding_window": WINDOW, "rope_parameters": STRETCHED},
  "Qwen2": {"family": "Qwen2", "rope_parameters": STRETCHED},
  "Qwen2.5, window of the last 0 layers": {
    **{"family": "Qwen2", "use_sliding_window": True, "sliding_window": WINDOW},
    "max_window_layers": 3,
  },
  "Qwen2.5, window": {
    **{"family": "Qwen2", "use_sliding_window": True, "sliding_window": WINDOW},
    **{"max_window_layers": 0, "tie_word_embeddings": True},
  },
  "Qwen3": {"family": "Qwen3", "head_dim": 24, "rope_parameters": STRETCHED},
  "Qwen3, window": {
    **{"family": "Qwen3", "use_sliding_window": True, "sliding_window": WINDOW},
    **{"max_window_layers": 0, "head_dim": 24},
  },
}
FAMILIES = ("Llama 3", "Mistral, window", "Qwen2", "Qwen3")  # of the cases, one of each


def torch_llama(family: str = "Llama", **changes):
  """A random model with its head whose layers change something, whose norms are not one and whose
  biases are not zero."""
  torch.manual_seed(0)
  config = getattr(transformers, f"{family}Config")
  config = config(**{**SIZES, "rope_parameters": THETA, **changes})
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if "norm" in name:
        parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
      elif "bias" in name:
        parameter.copy_(0.5 * torch.randn_like(parameter))
      else:
        parameter.mul_(8)
  return model


def llama_from(directory, **changes) -> Llama:
  config = dataclasses.replace(read_architecture(directory), **{"weights": "float32", **changes})
  llama = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
  load_weights(llama, Checkpoint(directory))
  return llama


def states(llama: Llama, x_TD: np.ndarray, prompt: int = 3) -> jax.Array:
  """All tokens' last hidden states; the first ones as the prompt, the others as a row."""
  T = len(x_TD) - prompt
  (x_XD,) = llama(
    jnp.asarray(x_TD[:prompt]),
    jnp.asarray(x_TD[None, prompt:]),
    jnp.arange(T)[None],
    jnp.tri(T, prompt + T, prompt, dtype=bool)[None],
  )
  return x_XD


def torch_states(model, x_TD: np.ndarray) -> np.ndarray:
  with torch.no_grad():
    x = torch.tensor(x_TD[None]).to(next(model.parameters()).dtype)
    return model(inputs_embeds=x).last_hidden_state[0].float().numpy()


def reloaded(directory, dtype):
  """Not model.to(dtype), which rounds the rotation's frequencies too."""
  return transformers.AutoModel.from_pretrained(directory, dtype=dtype, attn_implementation="eager")


def tokens(model) -> np.ndarray:
  rng = np.random.default_rng(1)
  return rng.normal(size=(LENGTH, model.config.hidden_size)).astype(np.float32)


def randomise_lora(llama: Llama, seed: int = 0) -> None:
  """B is zero at first: an adapter that nothing would miss."""
  rng = np.random.default_rng(seed)
  for module in (llama.blocks.attention, llama.blocks.mlp):
    for name in PROJECTIONS:
      if (lora := getattr(getattr(module, name, None), "lora", None)) is not None:
        for factor in (lora.a, lora.b):
          factor.set_value(jnp.asarray(rng.normal(size=factor.shape) * 0.1, jnp.float32))
