"""Named sets of choices, as differences from the defaults, and the prompts of the paper.

A preset sets choices, never sizes.
"""

from collections.abc import Mapping
from typing import Any

_PAPER = {
  "recommender.encoder": "mlp",
  "recommender.codes": "codebooks",
  "recommender.fusion": "frequency",
  "recommender.gate_temperature": 1e-3,
  "recommender.whiten": 0,
  "recommender.prompt.response": 4,
  "recommender.targets_per_user": 50,
  "recommender.optimizer.weight_decay": 0.0,
  "semantic_ids.reconstruction": "mmd",
  "semantic_ids.alignment": "info_nce",
  "semantic_ids.standardize": False,
  "semantic_ids.quantizer.learning": "gradient",
  "semantic_ids.quantizer.start": "balanced",
  "semantic_ids.quantizer.commitment": 0.01,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
  "best": {},  # the defaults
  "paper": _PAPER,
  # Their published code, Applied-Machine-Learning-Lab/MME-SID at commit f5b0689, which aligns by
  # MMD; the later 97bbf07 aligns by InfoNCE. Their commitment weight is the alignment weight by
  # accident; both are 0.01, the value that the paper gives.
  "released_code": {
    **_PAPER,
    "semantic_ids.alignment": "mmd",
    "semantic_ids.quantizer.commitment_levels": "first",
    "semantic_ids.quantizer.sinkhorn_first": "samples",
  },
}

ITEMS = "{items}"  # stands for the tokens of the history in a prompt text
_SYSTEM = "You are a helpful AI assistant for recommendations"
_TASK = "Given the user's purchase history, predict next possible item to be purchased."
_ANSWER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
PROMPTS: Mapping[str, str] = {
  # as the authors document it, with spaces around the items: 34 + 5 tokens of Llama 3
  "paper": (
    f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{_SYSTEM}<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{_TASK} {ITEMS} {_ANSWER}"
  ),
  # as their code tokenizes it: the beginning is overwritten, and no spaces: 17 + 4 tokens
  "released_code": f"<|begin_of_text|>{{ {_TASK}{ITEMS}{_ANSWER}",
}
# the same for the chat form of any checkpoint: what the system says, and what the user says
CHATS: Mapping[str, tuple[str, str]] = {
  "paper": (_SYSTEM, f"{_TASK} {ITEMS}"),
  "released_code": ("", f"{{ {_TASK}{ITEMS}"),
}
