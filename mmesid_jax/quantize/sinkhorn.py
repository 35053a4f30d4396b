"""Balanced assignment by optimal transport, which spreads a batch over all codes."""

import jax
import jax.numpy as jnp


def sinkhorn(
  distance_BC: jax.Array, *, epsilon: float, iterations: int, first: str = "codes"
) -> jax.Array:
  """Log of the transport plan [B, C] from a batch to the codes, both with uniform marginals.

  Distances are first shifted and scaled to [-1, 1] over the batch, so epsilon has no unit. In the
  log domain float32 is enough (the released code needs float64). argmax over C is the assignment.
  Until it has converged, the plan depends on which of the two every iteration scales `first`:
  "codes", or "samples" as in the released code. Sources: Cuturi 2013; MME-SID's released code
  (epsilon 0.003, 50 iterations).
  """
  d_BC = jax.lax.stop_gradient(distance_BC.astype(jnp.float32))
  low, high = d_BC.min(), d_BC.max()
  middle, half = (low + high) / 2, jnp.maximum((high - low) / 2, 1e-12)
  log_kernel_BC = -(d_BC - middle) / half / epsilon
  axes = {"codes": (0, 1), "samples": (1, 0)}[first]  # a sum over axis 0 is that of a code

  def normalize(log_plan_BC, _):
    for axis in axes:
      total = jax.nn.logsumexp(log_plan_BC, axis=axis, keepdims=True)
      log_plan_BC = log_plan_BC - (total + jnp.log(d_BC.shape[1 - axis]))
    return log_plan_BC, None

  return jax.lax.scan(normalize, log_kernel_BC, length=iterations)[0]
