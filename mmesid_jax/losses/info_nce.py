"""Contrastive alignment of two modalities of the same items."""

import jax
import jax.numpy as jnp


def info_nce(query_BD: jax.Array, key_BD: jax.Array, temperature: float) -> jax.Array:
  """Mean over the batch of -log softmax(cos(query_i, key_.) / temperature)[i]: in-batch negatives.

  One direction, as in the paper, where the collaborative modality is the query. float32 scalar.
  Sources: MME-SID, alignment loss; van den Oord et al. 2018.
  """

  def normalize(x_BD):
    # The sum has a lower bound, so a zero vector has cosine 0 and a finite gradient.
    return x_BD * jax.lax.rsqrt(jnp.maximum((x_BD**2).sum(1, keepdims=True), 1e-12))

  query_BD, key_BD = (normalize(x.astype(jnp.float32)) for x in (query_BD, key_BD))
  logits_BB = query_BD @ key_BD.T / temperature
  return (jax.nn.logsumexp(logits_BB, axis=1) - jnp.diagonal(logits_BB)).mean()
