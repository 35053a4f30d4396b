"""Which projections LoRA adapts: refused where there are none, or where there is no such."""

import pytest

from mmesid_jax.errors import UserError
from mmesid_jax.models.layers.lora import LoRAConfig

KNOWN = "q, k, v, out, gate, up, down"


@pytest.mark.parametrize(
  ("targets", "message"),
  [
    ((), f"lora.targets is empty: name at least one of {KNOWN}"),
    (("q", "head", "gat"), f"lora.targets names gat, head: expected some of {KNOWN}"),
  ],
)
def test_targets_that_adapt_nothing_are_refused(targets, message):
  with pytest.raises(UserError) as error:
    LoRAConfig(rank=2, alpha=4.0, targets=targets)
  assert str(error.value) == message


def test_known_targets_are_taken():
  assert LoRAConfig(rank=2, alpha=4.0, targets=("q", "down")).targets == ("q", "down")
