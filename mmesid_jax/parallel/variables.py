"""Variable types beside nnx.Param: what a model holds but does not train, and low-rank factors."""

from flax import nnx


class Frozen(nnx.Variable):
  """Tables that stay as they are: features, codes, code tables where the configuration says so; not
  an nnx.Param on purpose."""


class Pretrained(Frozen):
  """Backbone weights that stay as a checkpoint holds them: read from it again, never written to an
  artifact."""


class LoRAParam(nnx.Param):
  """A factor of a low-rank update: trained, and exported as an adapter."""
