"""Variable types besides nnx.Param: fixed tables, pretrained weights, low-rank factors."""

from flax import nnx


class Frozen(nnx.Variable):
  """Tables that are not trained: features, codes, and code tables if the configuration says so.

  Not an nnx.Param, so that the optimizer does not see them.
  """


class Pretrained(Frozen):
  """Backbone weights that stay as in a checkpoint; read from there, never put in an artifact."""


class Derived(Frozen):
  """Tables that are computed from others of the model; never put in an artifact."""


class LoRAParam(nnx.Param):
  """A factor of a low-rank update: trained, and exported as an adapter."""
