"""The whole scorer against the method's formulas in torch: one sample per target, nothing packed.

What torch is given is what a user of PyTorch finds in a workdir: the base checkpoint, adapter/ as
peft loads it, and the tensors of recommender.safetensors by their documented names.
"""

import numpy as np
import pytest
from checkpoints import write_tokenizer
from flax import nnx
from parity.llamas import llama_from, randomise_lora, torch_llama

from mmesid_jax.config.presets import PROMPTS
from mmesid_jax.data.batches import batch_sequences
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.hf.adapter import write_adapter
from mmesid_jax.hf.prompt import read_embeddings, tokenize_prompt
from mmesid_jax.hf.safetensors_dir import Checkpoint
from mmesid_jax.losses.next_item import cross_entropy
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.layers.lora import LoRAConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.placement import model_tensors, named_variables

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

ITEMS, D = 30, 64
WIDTH = {"collaborative": 6, "text": 10, "visual": 7}
LEVELS, CODES = 3, 5
HISTORIES = [[4, 9, 2], [], [7], [1, 30, 12, 12, 5, 8]]
TARGETS = [3, 30, 1, 17]


def our_model(base, encoder: str, template: str) -> RecommenderModel:
  rng = np.random.default_rng(0)

  def table(*shape):
    return rng.normal(size=shape).astype(np.float32)

  llama = llama_from(base, lora=LoRAConfig(rank=4, alpha=8.0))
  randomise_lora(llama)
  prompt = tokenize_prompt(base, template)
  items = ItemEncoder(
    {m: table(ITEMS + 1, v) for m, v in WIDTH.items()},
    {m: rng.integers(0, CODES, (ITEMS + 1, LEVELS)).astype(np.int32) for m in WIDTH},
    {m: table(LEVELS, CODES, D) for m in WIDTH},
    D=D,
    kind=encoder,
    rngs=nnx.Rngs(0),
  )
  model = RecommenderModel(
    items,
    FrequencyFusion(
      np.arange(ITEMS + 1) ** 2, 3, kind="frequency", temperature=0.5, rngs=nnx.Rngs(1)
    ),
    llama.config,
    P=len(prompt.before),
    S=len(prompt.after),
    item_dropout=0.0,
    from_checkpoint=("backbone", "prompt"),
    rngs=nnx.Rngs(2),
  )
  model.backbone = llama
  checkpoint = Checkpoint(base)
  model.prompt_PD.set_value(read_embeddings(checkpoint, prompt.before))
  model.response_SD.set_value(read_embeddings(checkpoint, prompt.after))
  return model


def linear(x, given, name):
  y = x @ given[f"{name}.weight"]
  return y + given[f"{name}.bias"] if f"{name}.bias" in given else y


def torch_item_tokens(item, given, encoder):
  """gelu(MLP([W e + b ; sum over levels of E[code]])); "tied" adds the same parts up."""
  features = [
    linear(given[f"items.feature_IV.{m}"][item], given, f"items.project.{m}") for m in WIDTH
  ]
  codes = [
    sum(
      given[f"items.codebook_LCD.{m}"][level, given[f"items.code_IL.{m}"][item, level]]
      for level in range(LEVELS)
    )
    for m in WIDTH
  ]
  if encoder == "tied":
    return given["items.identity_ID"][item] + sum(features) + sum(codes)
  hidden = linear(torch.cat(features + codes, -1), given, "items.hidden").relu()
  return torch.nn.functional.gelu(linear(hidden, given, "items.out"))


def torch_scores(history, llama, ids, given, encoder):
  """One user's scores of all items, the prompt in full, positions 0, 1, 2, ..."""
  embed = llama.get_input_embeddings()
  before, behind = ids
  parts = [embed(torch.tensor(before, dtype=torch.long))]
  if history:
    parts.append(torch_item_tokens(torch.tensor(history), given, encoder))
  parts.append(embed(torch.tensor(behind, dtype=torch.long)))
  o = llama.base_model.model.model(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0, -1]

  gelu = torch.nn.functional.gelu
  hidden = gelu(linear(given["gates.frequency_I"][:, None], given, "gates.layers.0"))
  hidden = gelu(linear(linear(hidden, given, "gates.layers.1"), given, "gates.layers.2"))
  weights = torch.softmax(linear(hidden, given, "gates.layers.3") / 0.5, -1)
  score = weights[:, 0] * (given["items.identity_ID"] @ o)
  for s, m in enumerate(WIDTH, 1):
    content = linear(given[f"items.feature_IV.{m}"], given, f"items.project.{m}")
    score = score + weights[:, s] * (content @ o)
  return score[1:]  # row 0 is padding


@pytest.mark.parametrize("encoder, prompt", [("mlp", "paper"), ("tied", "released_code")])
def test_scores_and_gradients_equal_one_sample_per_target_in_torch(encoder, prompt, tmp_path):
  template = PROMPTS[prompt]
  base = tmp_path / "base"
  vocabulary = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(write_tokenizer(tmp_path / "tokenizer") / "tokenizer.json")
  )
  vocabulary.save_pretrained(base)
  torch_llama(vocab_size=len(vocabulary)).save_pretrained(base)
  model = our_model(base, encoder, template)
  write_adapter(model.backbone, tmp_path / "adapter", base=str(base))

  # torch
  llama = peft.AutoPeftModelForCausalLM.from_pretrained(
    tmp_path / "adapter", is_trainable=True, attn_implementation="eager"
  ).eval()
  given = {name: torch.tensor(x) for name, x in model_tensors(model).items()}
  trained = {name for name, v in named_variables(model) if isinstance(v, nnx.Param)}
  for name in trained:
    given[name].requires_grad_()
  ids = [vocabulary.encode(p, add_special_tokens=False) for p in template.split("{items}")]
  expected = [torch_scores(h, llama, ids, given, encoder) for h in HISTORIES]
  loss = sum(
    torch.nn.functional.cross_entropy(s[None], torch.tensor([t - 1]))
    for s, t in zip(expected, TARGETS, strict=True)
  )
  loss.backward()

  # ours: all users packed into the rows of one batch
  sequences = [np.array([*h, t]) for h, t in zip(HISTORIES, TARGETS, strict=True)]
  longest = max(len(h) for h in HISTORIES) + len(ids[1])
  (batch,) = batch_sequences(
    sequences, Layout(2, 2 * longest, 8, len(ids[1])), [len(h) for h in HISTORIES]
  )

  def our_loss(model):
    score_QI = model.scores(model.hidden(batch))
    return cross_entropy(score_QI, batch.target_Q, batch.weight_Q)[0], score_QI

  (value, score_QI), gradient = nnx.value_and_grad(our_loss, has_aux=True)(model)
  places = np.flatnonzero(batch.weight_Q)
  for q in places:
    theirs = expected[batch.piece_Q[q]].detach().numpy()
    np.testing.assert_allclose(score_QI[q, 1:], theirs, atol=1e-4 * np.abs(theirs).max())
  np.testing.assert_allclose(value, loss.item(), rtol=1e-4)

  ours = model_tensors(gradient)
  torch_gradients = {n: given[n].grad.numpy() for n in trained if "lora" not in n}
  used = {n for n, g in torch_gradients.items() if np.abs(g).max() > 0}
  assert len(used) >= 3 * 2 + 3 + 7 + 1  # projections, codes, gates, item table
  for name in used:
    scale = np.abs(torch_gradients[name]).max()
    np.testing.assert_allclose(ours[name], torch_gradients[name], atol=1e-3 * scale, err_msg=name)
  for name, parameter in llama.named_parameters():
    if "lora_" in name:
      i, part, module, factor = name.partition(".layers.")[2].split(".")[:4]
      key = f"backbone.blocks.{part}.{module.removesuffix('_proj')}.lora.{factor[-1].lower()}"
      scale = parameter.grad.abs().max()
      got = ours[key][int(i)].T
      np.testing.assert_allclose(got, parameter.grad, atol=1e-3 * scale, err_msg=name)
