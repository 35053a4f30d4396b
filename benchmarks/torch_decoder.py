"""Constrained beam search as transformers offers it: what decoding.py runs ours against.

This is `generate` with `prefix_allowed_tokens_fn`, which looks prefixes up in a dictionary. The
weights are those of one of our models. Codes of a level follow those of the level before; the last
token is "no number".
"""

from collections.abc import Sequence

import jax
import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from mmesid_jax.hf.architecture import architecture_json
from mmesid_jax.hf.llama_weights import to_hugging_face
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.quantize.item_ids import NO_CODE


class Levels(nn.Module):
  """Logits [..., V]: the scores of every level's codes, and 0 for "no number"."""

  def __init__(self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]):
    super().__init__()
    self.weights, self.biases = ([*map(torch.tensor, x)] for x in (weights, biases))

  def forward(self, h: torch.Tensor) -> torch.Tensor:
    pairs = zip(self.weights, self.biases, strict=True)
    levels = [F.linear(h, weight_CD, bias_C) for weight_CD, bias_C in pairs]
    return torch.cat([*levels, torch.zeros_like(h[..., :1])], -1)


class TorchDecoder:
  """A model of ours as a LlamaForCausalLM on the CPU, float32, and the IDs of its items."""

  def __init__(self, ours: RecommenderModel):
    head, c = ours.generate, ours.backbone.config
    book_LCD = np.array(jax.device_get(head.codebook(ours.items)))
    numbers = [] if head.number_CD is None else [np.array(head.number_CD[...])]
    tables, sizes = [*book_LCD, *numbers], head.sizes
    first = [sum(sizes[:level]) for level in range(len(sizes))]  # token of a level's code 0
    architecture = architecture_json(c, vocabulary=sum(sizes) + 1, dtype="float32")
    architecture |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": sum(sizes)}
    self.model = transformers.AutoModelForCausalLM.from_config(
      transformers.LlamaConfig.from_dict(architecture | {"tie_word_embeddings": False})
    ).eval()
    weights = {key: torch.tensor(np.array(x)) for key, x in to_hugging_face(ours.backbone)}
    missing, unexpected = self.model.load_state_dict(weights, strict=False)
    assert {*missing} == {"model.embed_tokens.weight", "lm_head.weight"} and not unexpected
    rows = np.zeros(self.model.model.embed_tokens.weight.shape, np.float32)
    read_LCD = book_LCD + np.asarray(head.place_LD[...])[:, None]
    rows[: read_LCD[..., 0].size] = read_LCD.reshape(-1, c.D) * ours.token_scale
    with torch.no_grad():
      self.model.model.embed_tokens.weight.copy_(torch.tensor(rows))
    project_LDD = np.eye(c.D, dtype=np.float32) + np.asarray(head.project_LDD[...])
    self.model.lm_head = Levels(
      [x_CD @ w_DD.T * ours.state_scale for x_CD, w_DD in zip(tables, project_LDD, strict=True)],
      [np.array(head.bias[str(level)][...]) for level in range(len(sizes))],
    )
    self.levels, self.none = len(sizes), sum(sizes)
    item_ID = ours.items(np.arange(ours.num_items + 1)) * ours.token_scale
    self.item_ID = torch.tensor(np.array(item_ID))
    empty_0D = np.zeros((0, c.D), np.float32)
    response = empty_0D if ours.response_SD is None else np.array(ours.response_SD[...])
    self.prompt_PD = torch.tensor(np.array(ours.prompt_PD[...]))
    self.response_SD = torch.tensor(response)
    self.item_of: dict[tuple[int, ...], int] = {}
    self.children: dict[tuple[int, ...], list[int]] = {}
    for item, row in enumerate(np.asarray(head.id_IL[...]).tolist()[1:], 1):
      tokens = tuple(
        self.none if code == NO_CODE else first[k] + code for k, code in enumerate(row)
      )
      self.item_of[tokens] = item
      for k in range(len(sizes)):
        allowed = self.children.setdefault(tokens[:k], [])
        if tokens[k] not in allowed:
          allowed.append(tokens[k])

  def _allowed(self, sample: int, tokens: torch.Tensor) -> list[int]:
    return self.children.get(tuple(tokens.tolist()), [self.none])  # of beams that are not in use

  @torch.no_grad()
  def generate(self, histories: Sequence[np.ndarray], beams: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores [users, beams], best first; item 0 where there are too few."""
    samples = [
      torch.cat([self.prompt_PD, self.item_ID[torch.tensor(h)], self.response_SD])
      for h in histories
    ]
    T = max(map(len, samples))
    x_BTD = torch.stack([F.pad(x, (0, 0, T - len(x), 0)) for x in samples])
    mask_BT = torch.stack(
      [F.pad(torch.ones(len(x), dtype=torch.long), (T - len(x), 0)) for x in samples]
    )
    found = self.model.generate(
      inputs_embeds=x_BTD,
      attention_mask=mask_BT,
      max_new_tokens=self.levels,
      num_beams=beams,
      num_return_sequences=beams,
      length_penalty=0.0,  # the sum of log-probabilities, not their mean
      do_sample=False,
      prefix_allowed_tokens_fn=self._allowed,
      renormalize_logits=True,  # the softmax is over what may follow
      return_dict_in_generate=True,
      output_scores=True,
    )
    items = [self.item_of.get(tuple(row), 0) for row in found.sequences.tolist()]
    scores = found.sequences_scores.numpy()
    shape = (len(histories), beams)
    return np.reshape(items, shape), scores.reshape(shape)
