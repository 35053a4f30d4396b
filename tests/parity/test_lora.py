"""LoRA against peft: outputs, gradients, and adapters that travel in both directions."""

import jax
import numpy as np
import pytest
from flax import nnx
from parity.llamas import (
  CASES,
  FAMILIES,
  llama_from,
  randomise_lora,
  states,
  tokens,
  torch_llama,
  torch_states,
)

from mmesid_jax.config.schema import PROJECTIONS
from mmesid_jax.errors import UserError
from mmesid_jax.hf.adapter import read_adapter, write_adapter
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.parallel.variables import LoRAParam

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

EVERY = LoRAConfig(rank=3, alpha=4.0, rslora=True, targets=PROJECTIONS)
ADAPTERS = {
  "the paper's": ("Llama 3", LoRAConfig(rank=8, alpha=16.0, targets=("gate", "up", "down"))),
  "queries and values": ("Llama 3", LoRAConfig(rank=2, alpha=1.0, targets=("v", "q"))),
  **{f"every projection of {case}, rank-stabilised": (case, EVERY) for case in FAMILIES},
}


@pytest.fixture(params=ADAPTERS)
def adapted(request, tmp_path):
  """Our backbone with a random adapter, and the same in peft, read from what we wrote."""
  case, config = ADAPTERS[request.param]
  torch_llama(**CASES[case]).save_pretrained(tmp_path / "base")
  llama = llama_from(tmp_path / "base", lora=config)
  randomise_lora(llama)
  write_adapter(llama, tmp_path / "adapter", base=str(tmp_path / "base"))
  theirs = peft.AutoPeftModelForCausalLM.from_pretrained(
    tmp_path / "adapter", attn_implementation="eager", is_trainable=True
  )
  return llama, theirs.eval(), tmp_path


def test_an_exported_adapter_gives_our_hidden_states_in_peft(adapted):
  llama, theirs, folder = adapted
  x_TD = tokens(theirs)
  plain = states(llama_from(folder / "base"), x_TD)
  ours = states(llama, x_TD)
  assert np.abs(ours - plain).max() > 0.1, "the adapter must change something"
  np.testing.assert_allclose(ours, torch_states(theirs.base_model.model.model, x_TD), atol=1e-4)


def test_gradients_of_the_factors_equal_peft(adapted):
  llama, theirs, _ = adapted
  x_TD = tokens(theirs)
  weight_TD = np.random.default_rng(2).normal(size=x_TD.shape).astype(np.float32) / x_TD.size

  graph, factors, frozen = nnx.split(llama, LoRAParam, ...)

  def loss(factors):
    return (states(nnx.merge(graph, factors, frozen), x_TD) * weight_TD).sum()

  gradient = nnx.merge(graph, jax.grad(loss)(factors), frozen)
  hidden = theirs.base_model.model.model(inputs_embeds=torch.tensor(x_TD[None])).last_hidden_state
  (hidden[0] * torch.tensor(weight_TD)).sum().backward()

  compared = 0
  for name, parameter in theirs.named_parameters():
    if parameter.grad is None:
      continue
    _, _, tail = name.partition(".layers.")
    i, part, module, factor, *_ = tail.split(".")
    ours = getattr(
      getattr(gradient.blocks, {"self_attn": "attention"}.get(part, part)),
      {"o_proj": "out"}.get(module, module.removesuffix("_proj")),
    ).lora
    ours = (ours.a if factor == "lora_A" else ours.b)[...][int(i)]
    expected = parameter.grad.numpy()
    np.testing.assert_allclose(
      np.asarray(ours).reshape(len(ours), -1).T, expected, atol=1e-4 * np.abs(expected).max()
    )
    compared += 1
  assert compared == 2 * 3 * len(llama.config.lora.targets)


def test_an_adapter_trained_in_peft_is_read(adapted):
  llama, theirs, folder = adapted
  optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
  x_TD = tokens(theirs)
  for _ in range(3):
    theirs(inputs_embeds=torch.tensor(x_TD[None])).logits.square().mean().backward()
    optimizer.step()
  theirs.save_pretrained(folder / "trained")
  before = states(llama, x_TD)
  read_adapter(llama, folder / "trained")
  after = states(llama, x_TD)
  assert np.abs(after - before).max() > 1e-2
  np.testing.assert_allclose(after, torch_states(theirs.base_model.model.model, x_TD), atol=1e-4)


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal", "mica", "pissa", "olora"])
def test_adapters_are_read_as_peft_reads_them_or_refused(start, tmp_path):
  """By what `init_lora_weights` did to the base."""
  torch_llama().save_pretrained(tmp_path / "base")
  config = LoRAConfig(rank=4, alpha=8.0, targets=("gate", "up", "down"))
  llama = llama_from(tmp_path / "base", lora=config)
  modules = ["gate_proj", "up_proj", "down_proj"]
  options = {"r": 4, "lora_alpha": 8.0, "target_modules": modules, "init_lora_weights": start}
  base = torch_llama()
  theirs = peft.get_peft_model(base, peft.LoraConfig(**options, task_type="CAUSAL_LM"))
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      if "lora_" in name:
        parameter.add_(0.05 * torch.randn_like(parameter))
  theirs.eval().save_pretrained(tmp_path / "adapter")
  if start in ("pissa", "olora"):
    with pytest.raises(UserError, match=f"init_lora_weights is '{start}'"):
      read_adapter(llama, tmp_path / "adapter")
    return
  read_adapter(llama, tmp_path / "adapter")
  x_TD = tokens(theirs)
  expected = torch_states(theirs.base_model.model.model, x_TD)
  np.testing.assert_allclose(states(llama, x_TD), expected, atol=1e-4)
