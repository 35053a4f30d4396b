"""Balanced assignment by optimal transport, which spreads a batch over all codes."""

import jax
import jax.numpy as jnp


def sinkhorn(distance_BC: jax.Array, *, epsilon: float, iterations: int) -> jax.Array:
  """Log of the transport plan [B, C] from a batch to the codes, both with uniform marginals.

  Distances are first shifted and scaled to [-1, 1] over the batch, so epsilon has no unit. In the
  log domain float32 is enough (the released code needs float64). argmax over C is the assignment.
  Sources: Cuturi 2013; MME-SID's released code (epsilon 0.003, 50 iterations).
  """
  d_BC = jax.lax.stop_gradient(distance_BC.astype(jnp.float32))
  low, high = d_BC.min(), d_BC.max()
  middle, half = (low + high) / 2, jnp.maximum((high - low) / 2, 1e-12)
  log_kernel_BC = -(d_BC - middle) / half / epsilon
  rows, codes = log_kernel_BC.shape

  def normalize(log_plan_BC, _):
    by_code = jax.nn.logsumexp(log_plan_BC, axis=0, keepdims=True) + jnp.log(codes)
    log_plan_BC = log_plan_BC - by_code
    by_row = jax.nn.logsumexp(log_plan_BC, axis=1, keepdims=True) + jnp.log(rows)
    return log_plan_BC - by_row, None

  return jax.lax.scan(normalize, log_kernel_BC, length=iterations)[0]
