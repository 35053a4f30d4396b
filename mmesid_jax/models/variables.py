"""Variable types beside nnx.Param: what a model holds but does not train."""

from flax import nnx


class Frozen(nnx.Variable):
  """Feature tables, codes and backbone weights that stay as they are; not an nnx.Param on
  purpose."""
