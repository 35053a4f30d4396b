"""Low-rank adaptation of a projection. Source: Hu et al. 2021; rsLoRA: Kalajdzievski 2023."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmesid_jax.config.schema import PROJECTIONS
from mmesid_jax.errors import UserError
from mmesid_jax.models.layers.linear import dropout
from mmesid_jax.parallel.variables import LoRAParam


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
  """Adapters of the projections named in `targets`; dropout acts on the inputs of adapters.

  Raises UserError when `targets` is empty or names anything that is not in PROJECTIONS.
  """

  rank: int
  alpha: float
  dropout: float = 0.0
  rslora: bool = False
  targets: tuple[str, ...] = ("gate", "up", "down")

  def __post_init__(self):
    known = ", ".join(PROJECTIONS)
    if not self.targets:
      raise UserError(f"lora.targets is empty: name at least one of {known}")
    if unknown := sorted(set(self.targets) - set(PROJECTIONS)):
      raise UserError(f"lora.targets names {', '.join(unknown)}: expected some of {known}")

  @property
  def scale(self) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rank-stabilized scaling."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class LoRA(nnx.Module):
  """scale * (dropout(x) A) B: A [d_in, rank] uniform in +-d_in ** -0.5, B [rank, *d_out] zero.

  Both are float32, so that small updates are not lost; products are computed in the dtype of x.
  """

  def __init__(self, d_in: int, d_out: tuple[int, ...], c: LoRAConfig, *, rngs: nnx.Rngs):
    bound = d_in**-0.5  # Kaiming's uniform with a = sqrt(5), as in peft
    shape = (d_in, c.rank)
    self.a = LoRAParam(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))
    self.b = LoRAParam(jnp.zeros((c.rank, *d_out)))
    self.scale, self.rate = c.scale, c.dropout

  def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    a, b = (factor[...].astype(x.dtype) for factor in (self.a, self.b))
    return self.scale * jnp.tensordot(dropout(x, self.rate, key) @ a, b, axes=1)
