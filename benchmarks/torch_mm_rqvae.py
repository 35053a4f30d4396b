"""The MM-RQ-VAE step in PyTorch, as one would write it down: what ours is compared with.

The same loss as `losses.semantic_id_loss` on features as they are and codebooks that learn by
gradient (both as in the paper), with the pairwise distances of the MMD by one Gram matrix, or as
the released code has them, by the (2B, 2B, V) tensor of differences.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from flax import nnx
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional as F

from mmesid_jax.losses.semantic_id_loss import ANCHOR
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.residual_quantizer import QuantizerConfig
from mmesid_jax.parallel.placement import model_tensors


class Autoencoder(nn.Module):
  """Encoder V -> hidden -> D, codebooks [L, C, D], mirrored decoder."""

  def __init__(self, V: int, hidden: tuple[int, ...], shape_LCD: tuple[int, int, int]):
    super().__init__()
    self.encoder = mlp((V, *hidden, shape_LCD[-1]))
    self.decoder = mlp((shape_LCD[-1], *reversed(hidden), V))
    self.codebook_LCD = nn.Parameter(torch.zeros(shape_LCD))


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
  """Linear layers with ReLU between."""
  layers = []
  for a, b in zip(widths, widths[1:], strict=False):
    layers += [nn.Linear(a, b), nn.ReLU()]
  return nn.Sequential(*layers[:-1])


class MMRQVAE(nn.Module):
  """One autoencoder a modality, sizes and parameters those of `ours`, copied."""

  def __init__(self, ours: MMRQVAE):
    super().__init__()
    self.by_modality = nn.ModuleDict()
    for m, part in ours.by_modality.items():
      V, *hidden = (layer.kernel.shape[0] for layer in part.encoder.layers)
      copy = Autoencoder(V, tuple(hidden), part.quantizer.codebook_LCD.shape)
      self.by_modality[m] = copy
      self.quantizer = part.quantizer.config
    self.load_state_dict({n: torch.tensor(x) for n, x in named_like_torch(ours).items()})


def named_like_torch(ours: nnx.Module | nnx.State) -> dict[str, np.ndarray]:
  """Parameters of our model, or their gradient, by the names and in the layout of the copy's."""
  named = {}
  for name, x in model_tensors(ours).items():
    path, layer, kind = re.fullmatch(r"(.*?)(?:\.layers\.(\d+))?\.(\w+)", name).groups()
    if kind in ("mean_V", "scale"):
      continue  # features are compared as they are
    if kind == "codebook_LCD":
      named[f"{path.removesuffix('.quantizer')}.{kind}"] = x
    elif kind == "kernel":
      named[f"{path}.{2 * int(layer)}.weight"] = np.ascontiguousarray(x.T)  # others are the ReLUs
    else:
      named[f"{path}.{2 * int(layer)}.bias"] = x
  return named


def gram(x_ND: torch.Tensor, y_MD: torch.Tensor) -> torch.Tensor:
  """[N, M] squared distances |x|^2 + |y|^2 - 2 x.y."""
  return ((x_ND**2).sum(1)[:, None] + (y_MD**2).sum(1) - 2 * x_ND @ y_MD.T).clamp_min(0)


def tensor(x_ND: torch.Tensor, y_MD: torch.Tensor) -> torch.Tensor:
  """[N, M] squared distances by the [N, M, D] tensor of differences, as in the released code."""
  return ((x_ND[:, None] - y_MD[None]) ** 2).sum(2)


DISTANCES: Mapping[str, Callable] = {"gram": gram, "tensor": tensor}


def mmd(
  x_BV: torch.Tensor, y_BV: torch.Tensor, bandwidths: Sequence[float], distances: Callable
) -> torch.Tensor:
  """Squared MMD under the mean of Gaussian kernels, s^2 = bandwidth * mean squared distance."""
  b = len(x_BV)
  pooled_NV = torch.cat([x_BV, y_BV])
  pooled_NV = pooled_NV - pooled_NV.detach().mean(0)
  d_NN = distances(pooled_NV, pooled_NV)
  scales = [-2 * bandwidth * d_NN.detach().mean() for bandwidth in bandwidths]
  k_NN = sum(torch.exp(d_NN / scale) for scale in scales) / len(scales)
  within = sum(k.sum() - k.trace() for k in (k_NN[:b, :b], k_NN[b:, b:])) / (b * (b - 1))
  return within - 2 * k_NN[:b, b:].mean()


def info_nce(query_BD: torch.Tensor, key_BD: torch.Tensor, temperature: float) -> torch.Tensor:
  """Cross-entropy of the cosines of every query with all keys of the batch, its own the target."""
  logits_BB = F.normalize(query_BD) @ F.normalize(key_BD).T / temperature
  return F.cross_entropy(logits_BB, torch.arange(len(query_BD), device=query_BD.device))


@torch.no_grad()
def sinkhorn(distance_BC: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
  """log of the transport plan [B, C], distances scaled to [-1, 1] first."""
  low, high = distance_BC.aminmax()
  plan_BC = -(distance_BC - (low + high) / 2) / ((high - low) / 2) / epsilon
  for _ in range(iterations):
    plan_BC = plan_BC.log_softmax(0)  # but for constants, which the last row step would take out
    plan_BC = plan_BC.log_softmax(1)
  return plan_BC


def quantize(
  z_BD: torch.Tensor, book_LCD: torch.Tensor, config: QuantizerConfig
) -> tuple[torch.Tensor, torch.Tensor]:
  """The sum of the chosen code vectors [B, D], straight through, and the loss over the levels."""
  residual_BD, losses = z_BD, []
  for level, book_CD in enumerate(book_LCD):
    distance_BC = gram(residual_BD.detach(), book_CD.detach())
    if config.sinkhorn_epsilon and level == len(book_LCD) - 1:
      plan_BC = sinkhorn(distance_BC, config.sinkhorn_epsilon, config.sinkhorn_iterations)
      code_B = plan_BC.argmax(1)
    else:
      code_B = distance_BC.argmin(1)
    v_BD = book_CD[code_B]
    to_input = F.mse_loss(residual_BD, v_BD.detach())
    losses.append(F.mse_loss(v_BD, residual_BD.detach()) + config.commitment * to_input)
    residual_BD = residual_BD - v_BD.detach()
  return z_BD - residual_BD.detach(), sum(losses) / len(losses)


def loss(
  model: MMRQVAE,
  features: Mapping[str, torch.Tensor],
  *,
  distances: Callable,
  reconstruction: str,
  bandwidths: Sequence[float],
  alignment: str,
  temperature: float,
  reconstruction_weight: float,
  quantization_weight: float,
  alignment_weight: float,
) -> torch.Tensor:
  """Weighted sum of reconstruction, quantization and alignment; options as our loss takes them."""
  total, quantized = 0, {}
  for m, x_BV in features.items():
    part = model.by_modality[m]
    z_BD = part.encoder(x_BV)
    quantized[m], quantization = quantize(z_BD, part.codebook_LCD, model.quantizer)
    y_BV = part.decoder(quantized[m])
    total += quantization_weight * quantization
    if reconstruction in ("mmd", "both"):
      total += reconstruction_weight * mmd(x_BV, y_BV, bandwidths, distances)
    if reconstruction in ("mse", "both"):
      total += reconstruction_weight * F.mse_loss(y_BV, x_BV)
  if alignment == "info_nce" and ANCHOR in quantized:
    for m, key_BD in quantized.items():
      if m != ANCHOR:
        total += alignment_weight * info_nce(quantized[ANCHOR], key_BD, temperature)
  return total


def make_step(
  model: MMRQVAE, tables: Mapping[str, torch.Tensor], config: ConfigDict, **loss_options
) -> Callable[[torch.Tensor], torch.Tensor]:
  """step(item_B) -> loss: gathers the items' features, and updates the model where it is.

  config = semantic_ids.optimizer: AdamW, no decay of biases, clipping by global norm.
  """
  biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
  others = [p for name, p in model.named_parameters() if not name.endswith("bias")]
  groups = [
    {"params": others, "weight_decay": config.weight_decay},
    {"params": biases, "weight_decay": 0.0},
  ]
  adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.b2), fused=True)

  def step(item_B: torch.Tensor) -> torch.Tensor:
    value = loss(model, {m: table[item_B] for m, table in tables.items()}, **loss_options)
    adamw.zero_grad()
    value.backward()
    if config.clip:
      nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    adamw.step()
    return value.detach()

  return step
