"""A workdir's recommender and blend in plain PyTorch, what torch_server.py answers with.

Read from config.json and the safetensors files, without jax. One history at a time, so nothing is
padded; what no history changes is computed once. The formulas are those of docs/pytorch.md,
mmesid_jax/models/evidence.py and mmesid_jax/models/blend.py. Histories are int64 [X], oldest first.
"""

import json
import pathlib

import numpy as np
import torch
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from mmesid_jax.config.saved import read_config

NEWEST, CANDIDATES = 50, 100  # as in evidence.py and blend.py
Tensors = dict[str, torch.Tensor]


def load(path: pathlib.Path, model: str) -> "Network | Blend":
  """The `model`, network or blend, of the workdir `path`."""
  network = Network(load_file(path / "recommender.safetensors"), read_config(path).recommender)
  if model == "network":
    return network
  file = path / "blend.safetensors"
  with safe_open(file, "pt") as opened:
    settings = json.loads(opened.metadata()["mmesid"])["settings"]
  return Blend(network, load_file(file), settings)


def strip_prefix(named: Tensors, prefix: str) -> Tensors:
  """The tensors whose names begin with the prefix, under the rest of their names, sorted."""
  return {n.removeprefix(prefix): named[n] for n in sorted(named) if n.startswith(prefix)}


def linear(x: torch.Tensor, named: Tensors, name: str) -> torch.Tensor:
  """The layer of that name; ours are [in, out]."""
  y = x @ named[f"{name}.weight"]
  return y + named[f"{name}.bias"] if f"{name}.bias" in named else y


def item_tokens(named: Tensors, kind: str) -> torch.Tensor:
  """The vectors of the items that the Llama reads, [I, D]."""
  project = "items.project_input" if kind == "untied" else "items.project"
  features = strip_prefix(named, "items.feature_IV.")
  parts = [linear(x_IV, named, f"{project}.{m}") for m, x_IV in features.items()]
  for m, code_IL in strip_prefix(named, "items.code_IL.").items():
    book_LCD = named[f"items.codebook_LCD.{m}"]
    known_IL1 = (code_IL >= 0)[..., None]
    parts.append((book_LCD[torch.arange(len(book_LCD)), code_IL.long()] * known_IL1).sum(1))
  if kind != "mlp":
    return named["items.identity_ID"] + sum(parts)
  hidden = linear(torch.cat(parts, -1), named, "items.hidden").relu()
  return F.gelu(linear(hidden, named, "items.out"))


def item_vectors(named: Tensors, temperature: float) -> torch.Tensor:
  """The vectors that score the items, [I, D]; without gates, all sources have the weight 1."""
  sources = [named["items.identity_ID"]]
  for m, x_IV in strip_prefix(named, "items.feature_IV.").items():
    sources.append(linear(x_IV, named, f"items.project.{m}"))
  if "gates.layers.0.weight" not in named:
    return sum(sources)
  hidden = F.gelu(linear(named["gates.frequency_I"][:, None], named, "gates.layers.0"))
  hidden = F.gelu(linear(linear(hidden, named, "gates.layers.1"), named, "gates.layers.2"))
  weight_IO = torch.softmax(linear(hidden, named, "gates.layers.3") / temperature, -1)
  return sum(weight_IO[:, o, None] * x_ID for o, x_ID in enumerate(sources))


class Network:
  """The Llama and the vectors of all items; c: config.recommender."""

  @torch.inference_mode()
  def __init__(self, tensors: Tensors, c: ConfigDict):
    if c.backbone.checkpoint:
      raise SystemExit("torch_blend.py reads backbones that were trained from scratch only")
    named = strip_prefix(tensors, "model.")
    self.c, self.longest = c, c.row_length - c.prompt.response
    self.token_ID = c.token_scale * item_tokens(named, c.encoder)
    self.item_ID = c.state_scale * item_vectors(named, c.gate_temperature)
    self.prompt_PD = named["prompt_PD"]
    self.response_SD = named.get("response_SD", self.prompt_PD[:0])
    self.final_norm_D = named["backbone.norm.scale"]
    blocks = strip_prefix(named, "backbone.blocks.")
    self.layers = []
    for i in range(c.layers):
      layer = {name: x[i] for name, x in blocks.items()}
      for name in [n for n in layer if n.endswith(".weight")]:  # [in, *out], torch wants [out, in]
        layer[name] = layer[name].flatten(1).T.contiguous()
      self.layers.append(layer)
    half = c.head_width // 2
    frequency_H = c.rope_theta ** (-torch.arange(half) / half)
    angle_TH = torch.arange(c.prompt.length + c.row_length)[:, None] * frequency_H
    self.cos_TH, self.sin_TH = (f(angle_TH).tile(2) for f in (torch.cos, torch.sin))

  def rotate(self, x_NTH: torch.Tensor) -> torch.Tensor:
    """Rotary positions, half-split."""
    T = x_NTH.shape[-2]
    first, second = x_NTH.chunk(2, -1)
    return x_NTH * self.cos_TH[:T] + torch.cat([-second, first], -1) * self.sin_TH[:T]

  def hidden(self, history_X: torch.Tensor) -> torch.Tensor:
    """The last hidden state, [D]."""
    c, items_XD = self.c, self.token_ID[history_X[-self.longest :]]
    x_TD = torch.cat([self.prompt_PD, items_XD, self.response_SD])
    T, D = x_TD.shape
    for layer in self.layers:
      y_TD = F.rms_norm(x_TD, (D,), layer["norm_attention.scale"], c.norm_eps)
      q, k, v = (
        F.linear(y_TD, layer[f"attention.{x}.weight"]).view(1, T, -1, c.head_width).transpose(1, 2)
        for x in "qkv"
      )
      q, k, grouped = self.rotate(q), self.rotate(k), c.heads != c.kv_heads
      seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
      seen = seen[0].transpose(0, 1).reshape(T, -1)
      x_TD = x_TD + F.linear(seen, layer["attention.out.weight"])
      y_TD = F.rms_norm(x_TD, (D,), layer["norm_mlp.scale"], c.norm_eps)
      gate, up = (F.linear(y_TD, layer[f"mlp.{x}.weight"]) for x in ("gate", "up"))
      x_TD = x_TD + F.linear(F.silu(gate) * up, layer["mlp.down.weight"])
    return F.rms_norm(x_TD[-1], (D,), self.final_norm_D, c.norm_eps)

  def scores(self, history_X: torch.Tensor) -> torch.Tensor:
    """Scores of all items, [I]; that of padding is -inf."""
    score_I = self.item_ID @ self.hidden(history_X)
    score_I[0] = -torch.inf
    return score_I


class Blend:
  """Network, counts and content, and the reranker if there is one.

  tensors: of blend.safetensors. settings: of its header.
  """

  @torch.inference_mode()
  def __init__(self, network: Network, tensors: Tensors, settings: dict[str, float]):
    self.network, self.settings = network, settings
    self.follower_IK = tensors["follower"].long()
    self.strength_IK = torch.log1p(tensors["count"] / settings["tau"])
    self.log_share_I = tensors["share"].log()
    self.popularity_I = settings["popularity"] * self.log_share_I
    self.trend_I = settings["trend"] * tensors["trend"]
    self.none_I = torch.zeros_like(self.trend_I)
    self.unit_IW = strip_prefix(tensors, "unit.")
    self.amount_E, self.share_E = tensors["amounts"].numpy(), tensors["shares"].numpy()
    self.least, self.most = tensors["weights"].tolist()
    self.reranker = strip_prefix(tensors, "reranker.")

  def recency_weights(self, X: int, recency: float) -> torch.Tensor:
    """Weights [X] of past items, newest first, with sum 1."""
    weight_X = recency ** torch.arange(X, dtype=torch.float32)
    return weight_X / weight_X.sum()

  def evidence(self, history_X: torch.Tensor) -> tuple[list[torch.Tensor], float]:
    """Its terms, each [I], in the order that the reranker knows them, and how much of it there is,
    as the share of users who have less."""
    s, newest_X = self.settings, history_X.flip(0)[:NEWEST]
    X = len(newest_X)
    weight_X = (1 - s["tail"]) * self.recency_weights(X, s["recency"]) + s["tail"] / X
    strength_XK = self.strength_IK[newest_X] * weight_X[:, None]
    transition_I = self.none_I.index_add(
      0, self.follower_IK[newest_X].flatten(), strength_XK.flatten()
    )
    repeat_I = self.none_I.index_add(0, history_X, torch.full(history_X.shape, float(s["repeats"])))
    terms = [transition_I, self.popularity_I, self.trend_I, repeat_I, self.none_I]
    for m, unit_IW in self.unit_IW.items():
      query_W = self.recency_weights(X, s[f"{m}.recency"]) @ unit_IW[newest_X]
      query_W = s[f"{m}.weight"] * query_W / query_W.norm().clamp(min=1e-12)
      terms.append(unit_IW @ query_W)
    return terms, float(np.interp(strength_XK.sum().item(), self.amount_E, self.share_E))

  def scores(self, history_X: torch.Tensor) -> torch.Tensor:
    """Scores of all items, [I]; that of padding is -inf."""
    network_I = self.network.scores(history_X)
    if not len(history_X):
      return network_I
    terms, share = self.evidence(history_X)
    weight = self.least + (self.most - self.least) * share
    score_I = sum(terms) + weight * network_I
    score_I[0] = -torch.inf
    return self.rerank(score_I, network_I, terms, share, history_X) if self.reranker else score_I

  def rerank(self, score_I, network_I, terms, share, history_X) -> torch.Tensor:
    """The scores with those of the best CANDIDATES given by the reranker."""
    old_K, item_K = score_I.topk(min(CANDIDATES, len(score_I) - 1))
    newest_X = history_X.flip(0)[:NEWEST]
    log_sum = network_I.logsumexp(0)
    user = [share, np.log1p(len(history_X)), self.log_share_I[newest_X[0]]]
    user.append(network_I.max() - log_sum)
    columns = [term_I[item_K] for term_I in terms]
    columns += [(x_IW[item_K] @ x_IW[newest_X].T).amax(1) for x_IW in self.unit_IW.values()]
    columns += [network_I[item_K] - log_sum]
    columns += [torch.full_like(old_K, float(x)) for x in user]
    p = self.reranker
    x_KF = (torch.stack(columns, 1) - p["mean_F"]) * p["factor_F"]
    hidden_KH = F.gelu(x_KF @ p["hidden_FH"] + p["bias_H"])
    new_K = p["scale"] * old_K + x_KF @ p["linear_F"] + hidden_KH @ p["output_H"]
    new_K = new_K + (old_K - new_K).mean()
    score_I = score_I - (old_K[-1] - new_K.min()).clamp(min=0)
    score_I[item_K] = new_K
    return score_I


@torch.inference_mode()
def top_items(model: Network | Blend, history: list[int], top_k: int) -> list[tuple[int, float]]:
  """The best items that are not in the history, with their scores, best first."""
  history_X = torch.tensor(history, dtype=torch.int64)
  score_I = model.scores(history_X)
  score_I[history_X] = -torch.inf
  score_A, item_A = score_I.topk(min(top_k, len(score_I) - 1))
  pairs = zip(item_A.tolist(), score_A.tolist(), strict=True)
  return [(item, score) for item, score in pairs if score > -torch.inf]
