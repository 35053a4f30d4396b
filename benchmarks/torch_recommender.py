"""The recommender in PyTorch, one sample per target: what recommender_step.py runs ours against.

The backbone is transformers' LlamaModel, frozen ones are adapted by peft. Names of parameters and
the formulas are those that README, "For PyTorch", lists.
"""

import abc
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import peft
import torch
import transformers
from flax import nnx
from torch import nn
from torch.nn import functional as F

from mmesid_jax.hf.adapter import PEFT_NAME
from mmesid_jax.hf.architecture import architecture_json
from mmesid_jax.hf.llama_weights import TABLE, layer_of, weight_of
from mmesid_jax.models.fusion import should_project_catalogue
from mmesid_jax.models.llama import LlamaConfig
from mmesid_jax.models.sequence_recommender import RecommenderModel


def llama(c: LlamaConfig) -> transformers.LlamaModel:
  """Random weights on the current device, LoRA around them if `c` has any; what is frozen is
  bfloat16 on a GPU. c.remat "layers" recomputes activations, c.dropout acts as it does in ours."""
  on_gpu = torch.get_default_device().type == "cuda"
  frozen = c.weights != "trained"
  architecture = architecture_json(c, vocabulary=1, dtype="float32")
  architecture |= {"bos_token_id": None, "eos_token_id": None}
  model = transformers.AutoModel.from_config(
    transformers.LlamaConfig.from_dict(architecture),
    dtype=torch.bfloat16 if frozen and on_gpu else torch.float32,
    attn_implementation="sdpa",
  )
  model.embed_tokens.requires_grad_(False)  # item vectors go in, no tokens
  if frozen:
    model.requires_grad_(False)
  if frozen and c.lora:
    config = peft.LoraConfig(
      r=c.lora.rank,
      lora_alpha=c.lora.alpha,
      lora_dropout=c.lora.dropout,
      use_rslora=c.lora.rslora,
      target_modules=[PEFT_NAME[name] for name in c.lora.targets],
    )
    peft.get_peft_model(model, config)  # in place
  if c.dropout:
    for block in model.layers:
      for module in (block.self_attn.o_proj, block.mlp):
        module.register_forward_hook(lambda m, _, y: F.dropout(y, c.dropout, m.training))
  if c.remat == "layers":
    model.gradient_checkpointing_enable({"use_reentrant": False})
  return model


def constant(tables: Mapping[str, np.ndarray]) -> nn.ParameterDict:
  return nn.ParameterDict(
    {m: nn.Parameter(torch.tensor(x), requires_grad=False) for m, x in tables.items()}
  )


class Items(nn.Module):
  """Item tokens, kind "tied" or "mlp", and what items are scored by. Features [I + 1, V], codes
  [I + 1, L], codebooks [L, C, D] by modality."""

  def __init__(self, features, codes, codebooks, *, D: int, kind: str):
    super().__init__()
    self.kind = kind
    rows = len(next(iter(features.values())))
    self.identity_ID = nn.Parameter(0.02 * torch.randn(rows, D))
    self.feature_IV, self.code_IL = constant(features), constant(codes)
    self.codebook_LCD = nn.ParameterDict(
      {m: nn.Parameter(torch.tensor(x)) for m, x in codebooks.items()}
    )
    self.project = nn.ModuleDict({m: nn.Linear(x.shape[1], D) for m, x in features.items()})
    if kind == "mlp":
      parts = len(features) + len(codes)
      self.hidden = nn.Linear(parts * D, parts * D // 2)
      self.out = nn.Linear(parts * D // 2, D)

  def quantised(self, modality: str, item_N: torch.Tensor) -> torch.Tensor:
    L, C, D = self.codebook_LCD[modality].shape
    code_NL = self.code_IL[modality][item_N] + C * torch.arange(L, device=item_N.device)
    return F.embedding(code_NL, self.codebook_LCD[modality].view(L * C, D)).sum(1)

  def forward(self, item_N: torch.Tensor) -> torch.Tensor:
    parts = [self.project[m](table_IV[item_N]) for m, table_IV in self.feature_IV.items()]
    parts += [self.quantised(m, item_N) for m in self.code_IL]
    if self.kind == "tied":
      return F.embedding(item_N, self.identity_ID) + sum(parts)
    return F.gelu(self.out(F.relu(self.hidden(torch.cat(parts, -1)))))


class Gates(nn.Module):
  """Weights [I, 1 + M] of the sources of every item's score; no padding row."""

  def __init__(self, frequency_I: np.ndarray, M: int, temperature: float):
    super().__init__()
    self.frequency_I = nn.Parameter(torch.tensor(frequency_I), requires_grad=False)
    self.layers = nn.ModuleList(
      [nn.Linear(1, 64), nn.Linear(64, 10), nn.Linear(10, 64, bias=False), nn.Linear(64, 1 + M)]
    )
    self.temperature = temperature

  def forward(self) -> torch.Tensor:
    first, down, up, last = self.layers
    hidden = F.gelu(up(down(F.gelu(first(self.frequency_I[1:, None])))))
    return torch.softmax(last(hidden).float() / self.temperature, -1)


class Samples(NamedTuple):
  """A padded batch of B samples of T tokens, prompt and response among them."""

  item_E: torch.Tensor  # the distinct items
  source_BT: torch.Tensor  # row of [prompt; response; items] that stands there
  mask_BT: torch.Tensor | None  # 1 = a token; None where padding comes last: nothing sees it
  last_B: torch.Tensor  # place of the sample's last token
  target_B: torch.Tensor


class TorchRecommender(nn.Module):
  """Built on the current device. Tables and sizes as in ours; `encoder` as `Items.kind`."""

  def __init__(
    self,
    c: LlamaConfig,
    *,
    features: Mapping[str, np.ndarray],
    codes: Mapping[str, np.ndarray],
    codebooks: Mapping[str, np.ndarray],
    frequency_I: np.ndarray,
    encoder: str,
    temperature: float,
    P: int,
    S: int,
    item_dropout: float = 0.0,
  ):
    super().__init__()
    self.items = Items(features, codes, codebooks, D=c.D, kind=encoder)
    self.gates = Gates(frequency_I, len(features), temperature)
    self.backbone = llama(c)
    self.prompt_PD = nn.Parameter(0.02 * torch.randn(P, c.D))
    self.response_SD = nn.Parameter(0.02 * torch.randn(S, c.D))
    self.item_dropout = item_dropout

  def samples(
    self, histories: Sequence[np.ndarray], targets: Sequence[int], *, left: bool
  ) -> Samples:
    """Pads to the longest, on the left under a mask or on the right without one."""
    P, S = len(self.prompt_PD), len(self.response_SD)
    item_N, slot = np.unique(np.concatenate(histories).astype(np.int64), return_inverse=True)
    ends = itertools.accumulate(map(len, histories))
    T = P + max(map(len, histories)) + S
    source_BT, mask_BT = np.zeros((2, len(histories), T), np.int64)
    last_B = np.zeros(len(histories), np.int64)
    for b, (history, end) in enumerate(zip(histories, ends, strict=True)):
      begin = T - P - len(history) - S if left else 0
      tokens = [np.arange(P), P + S + slot[end - len(history) : end], P + np.arange(S)]
      last_B[b] = begin + P + len(history) + S - 1
      source_BT[b, begin : last_B[b] + 1] = np.concatenate(tokens)
      mask_BT[b, begin : last_B[b] + 1] = 1
    arrays = (item_N, source_BT, mask_BT if left else None, last_B, np.asarray(targets, np.int64))
    device = self.prompt_PD.device
    return Samples(*(None if x is None else torch.tensor(x, device=device) for x in arrays))

  def hidden(self, batch: Samples) -> torch.Tensor:
    """o [B, D]: the last hidden state of every sample's last token."""
    table_XD = torch.cat([self.prompt_PD, self.response_SD, self.items(batch.item_E)])
    x_BTD = F.dropout(F.embedding(batch.source_BT, table_XD), self.item_dropout, self.training)
    hidden_BTD = self.backbone(
      inputs_embeds=x_BTD.to(self.backbone.dtype), attention_mask=batch.mask_BT, use_cache=False
    ).last_hidden_state
    return hidden_BTD[torch.arange(len(hidden_BTD), device=x_BTD.device), batch.last_B].float()


class Training(abc.ABC):
  """AdamW on the module's trainable parameters, gradients clipped to norm 1."""

  left: bool  # where samples are padded
  fused: bool  # the optimizer

  def __init__(self, model: TorchRecommender, *, learning_rate: float, weight_decay: float = 0.0):
    self.model = model
    self.trained = [p for p in model.parameters() if p.requires_grad]
    self.optimizer = torch.optim.AdamW(
      self.trained, lr=learning_rate, weight_decay=weight_decay, fused=self.fused
    )

  @abc.abstractmethod
  def scores(self, o_BD: torch.Tensor) -> torch.Tensor:
    """[B, I], column i - 1 = item i."""

  def micro_batches(self, histories, targets, size: int) -> list[Samples]:
    """The samples in their order, `size` a micro-batch."""
    return [
      self.model.samples(histories[i : i + size], targets[i : i + size], left=self.left)
      for i in range(0, len(histories), size)
    ]

  def loss(self, batch: Samples) -> torch.Tensor:
    """Sum over the samples of the cross-entropy over items 1..I."""
    device = batch.target_B.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
      score_BI = self.scores(self.model.hidden(batch))
    return F.cross_entropy(score_BI.float(), batch.target_B - 1, reduction="sum")

  def step(self, batches: Sequence[Samples]) -> torch.Tensor:
    """One update with the mean gradient over the micro-batches; returns the mean loss."""
    count = sum(len(batch.target_B) for batch in batches)
    total = torch.zeros((), device=self.model.prompt_PD.device)
    for batch in batches:
      loss = self.loss(batch) / count
      loss.backward()
      total += loss.detach()
    nn.utils.clip_grad_norm_(self.trained, 1.0)
    self.optimizer.step()
    self.optimizer.zero_grad()
    return total


class ReleasedStyle(Training):
  """As the authors' released code trains: a mask, padding on the left, and in every micro-batch
  the whole catalogue projected through every W_m. It takes 8 micro-batches of 2 samples a step."""

  left, fused = True, False

  def scores(self, o_BD: torch.Tensor) -> torch.Tensor:
    items, weight_IS = self.model.items, self.model.gates()
    score_BI = weight_IS[:, 0] * F.linear(o_BD, items.identity_ID[1:])
    for s, (m, table_IV) in enumerate(items.feature_IV.items(), start=1):
      score_BI = score_BI + weight_IS[:, s] * F.linear(o_BD, items.project[m](table_IV[1:]))
    return score_BI


class Good(Training):
  """As a careful engineer would: large batches of samples of similar length, no mask, the cheaper
  order of the products that score, fused AdamW."""

  left, fused = False, True

  def scores(self, o_BD: torch.Tensor) -> torch.Tensor:
    items, weight_IS = self.model.items, self.model.gates()
    parts = [(items.project[m], table_IV[1:]) for m, table_IV in items.feature_IV.items()]
    if should_project_catalogue(*o_BD.shape):
      item_ID = weight_IS[:, :1] * items.identity_ID[1:]
      for s, (project, table_IV) in enumerate(parts, start=1):
        item_ID = item_ID + weight_IS[:, s : s + 1] * project(table_IV)
      return F.linear(o_BD, item_ID)
    score_BI = weight_IS[:, 0] * F.linear(o_BD, items.identity_ID[1:])
    for s, (project, table_IV) in enumerate(parts, start=1):
      source_BI = F.linear(o_BD @ project.weight, table_IV) + (o_BD @ project.bias)[:, None]
      score_BI = score_BI + weight_IS[:, s] * source_BI
    return score_BI


@torch.no_grad()
def copy_parameters(ours: RecommenderModel, theirs: TorchRecommender) -> None:
  """Everything that `ours` holds, backbone and adapter included."""
  parameters = dict(theirs.named_parameters())

  def fill(parameter: torch.Tensor, value: jax.Array, *, weight: bool) -> None:
    array = np.asarray(jax.device_get(value))
    if weight and array.ndim > 1:  # [in, *out]; torch keeps [out, in]
      array = array.reshape(len(array), -1).T
    parameter.copy_(torch.tensor(array))

  for path, variable in nnx.to_flat_state(nnx.state(ours)):
    if path[0] != "backbone":
      name = ".".join(map(str, path))
      fill(parameters[name], variable[...], weight=path[-1] == "weight")
  fill(theirs.backbone.norm.weight, ours.backbone.norm.scale[...], weight=True)
  for entry in TABLE:
    layer = layer_of(ours.backbone, entry)
    name = entry.key.removeprefix("model.").removesuffix(".weight")
    for i in range(ours.backbone.config.layers):
      module = theirs.backbone.get_submodule(name.format(i))
      fill(
        getattr(module, "base_layer", module).weight,
        weight_of(ours.backbone, entry)[...][i],
        weight=True,
      )
      if lora := getattr(layer, "lora", None):
        fill(module.lora_A["default"].weight, lora.a[...][i], weight=True)
        fill(module.lora_B["default"].weight, lora.b[...][i], weight=True)
