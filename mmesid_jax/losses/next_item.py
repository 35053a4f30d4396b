"""Losses of next-item prediction: over the whole catalogue, in chunks, or with sampled items.

Each returns (sum over targets of weight * loss, sum of weights), two float32 scalars.
"""

import jax
import jax.numpy as jnp

from mmesid_jax.models.catalogue_scores import Scorer, candidate_mask
from mmesid_jax.parallel.sharding import mesh_axes, partition_spec, pick_columns, shard_count

MAX_SCORES = 2**28  # scores in memory at once, 1 GiB of float32; more are computed in chunks


def cross_entropy(
  scores_QI: jax.Array, target_Q: jax.Array, weight_Q: jax.Array, num_items: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """-log softmax(scores)[target] over items 1 .. num_items, None = all columns after the first.

  Column 0 is padding and excluded. float32, no one-hot. Source: MME-SID, recommendation loss.
  """
  columns = scores_QI.shape[1]
  real_I = candidate_mask(columns, num_items or columns)
  scores_QI = jnp.where(real_I, scores_QI.astype(jnp.float32), -jnp.inf)
  loss_Q = jax.nn.logsumexp(scores_QI, axis=1) - pick_columns(scores_QI, target_Q)
  return _weighted(loss_Q, weight_Q)


def _weighted(loss_Q: jax.Array, weight_Q: jax.Array) -> tuple[jax.Array, jax.Array]:
  # An unused place has target 0, whose score may be -inf: select, because 0 * inf is NaN.
  return jnp.where(weight_Q > 0, weight_Q * loss_Q, 0).sum(), weight_Q.sum()


def chunked_cross_entropy(
  scorer: Scorer, target_Q: jax.Array, weight_Q: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """`cross_entropy` of all items, with the scores of only `chunk` items in memory, [Q, chunk].

  The sum of exponentials is accumulated over chunks; the backward pass recomputes their scores.
  When a mesh divides the catalogue, every device processes its own part. Raises ValueError when
  chunk is less than 1.
  """
  if chunk < 1:
    raise ValueError(f"chunk={chunk}: expected at least 1 item")
  names = mesh_axes("items")
  if shard_count("items") == 1:
    largest_Q, sum_Q = _sum_of_exponentials(scorer, 0, chunk)
  else:

    def sum_of_part(arrays):
      part = Scorer(*arrays, num_items=scorer.last_item)
      first = jax.lax.axis_index(names) * part.num_rows
      largest_Q, sum_Q = _sum_of_exponentials(part, first, chunk, names)
      overall_Q = jax.lax.pmax(jax.lax.stop_gradient(largest_Q), names)
      return overall_Q, jax.lax.psum(sum_Q * jnp.exp(largest_Q - overall_Q), names)

    queries, tables = partition_spec("targets"), partition_spec("items", None)
    specs = (
      (partition_spec("targets", None),) * len(scorer.query),
      (tables,) * len(scorer.table),
      tuple(None if offset is None else queries for offset in scorer.offset),
      None if scorer.weight_IO is None else tables,
    )
    arrays = (scorer.query, scorer.table, scorer.offset, scorer.weight_IO)
    largest_Q, sum_Q = jax.shard_map(sum_of_part, in_specs=(specs,), out_specs=queries)(arrays)
  loss_Q = largest_Q + jnp.log(sum_Q) - scorer.score_targets(target_Q)
  return _weighted(loss_Q, weight_Q)


def _sum_of_exponentials(scorer: Scorer, first, chunk: int, names: tuple[str, ...] = ()):
  """m [Q] and sum_i exp(score[i] - m) [Q] over the rows of the scorer.

  first: the item of row 0. names: mesh axes that divide the catalogue, () if these are all rows.
  """

  @jax.checkpoint
  def add_chunk(largest_and_sum, rows_and_index):
    largest_Q, sum_Q = largest_and_sum
    rows, index = rows_and_index
    row_E = index * chunk + jnp.arange(chunk)
    item_E = first + row_E
    real_E = (item_E > 0) & (item_E <= scorer.last_item) & (row_E < scorer.num_rows)
    scores_QE = jnp.where(real_E, scorer.score_rows(rows).astype(jnp.float32), -jnp.inf)
    # The maximum cancels out of the result, so it needs no gradient.
    larger_Q = jax.lax.stop_gradient(jnp.maximum(largest_Q, scores_QE.max(1)))
    sum_Q = sum_Q * jnp.exp(largest_Q - larger_Q) + jnp.exp(scores_QE - larger_Q[:, None]).sum(1)
    return (larger_Q, sum_Q), None

  lowest = jnp.finfo(jnp.float32).min  # not -inf: a chunk of only padding would give inf - inf
  Q = len(scorer.query[0])
  start = jnp.full(Q, lowest), jnp.zeros(Q)
  if names:
    start = jax.lax.pcast(start, ("data", *names), to="varying")
  chunks = scorer.split_rows(chunk)
  indices = jnp.arange(-(-scorer.num_rows // chunk))
  largest_and_sum, _ = jax.lax.scan(add_chunk, start, (chunks, indices))
  return largest_and_sum


def chunk_size(targets: int, rows: int, chunk: int = 0) -> int:
  """Items whose scores are held at a time: `chunk`, or as many as MAX_SCORES holds; 0 = all."""
  if chunk or targets * rows <= MAX_SCORES:
    return chunk
  return max(1, MAX_SCORES // targets)


def catalogue_cross_entropy(
  scorer: Scorer, target_Q: jax.Array, weight_Q: jax.Array, chunk: int = 0
) -> tuple[jax.Array, jax.Array]:
  """`cross_entropy` in chunks of `chunk` items; 0 = chunks only if scores exceed MAX_SCORES."""
  if chunk := chunk_size(len(target_Q), scorer.num_rows, chunk):
    return chunked_cross_entropy(scorer, target_Q, weight_Q, chunk)
  return cross_entropy(scorer.score_all(), target_Q, weight_Q, scorer.last_item)


def sampled_cross_entropy(
  scorer: Scorer,
  target_Q: jax.Array,
  weight_Q: jax.Array,
  negative_E: jax.Array,
  log_expected_E: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of the target against sampled items.

  exp(target) + sum over negatives of exp(score) / expected is an unbiased estimate of the sum over
  the catalogue; negatives that are the target are excluded. Source: Bengio and Senecal 2008
  (importance sampling, the log-Q correction).

  Args:
    negative_E: items sampled with replacement.
    log_expected_E: log of the expected number of times that each of them is sampled.
  """
  target_score_Q = scorer.score_targets(target_Q)
  scores_QE = scorer.score_items(negative_E).astype(jnp.float32) - log_expected_E
  scores_QE = jnp.where(negative_E == target_Q[:, None], -jnp.inf, scores_QE)
  logits = jnp.concatenate([target_score_Q[:, None], scores_QE], axis=1)
  loss_Q = jax.nn.logsumexp(logits, axis=1) - target_score_Q
  return _weighted(loss_Q, weight_Q)


def binary_cross_entropy(
  positive_Q: jax.Array, negative_Q: jax.Array, weight_Q: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """-log sigmoid(positive) - log(1 - sigmoid(negative)). Source: SASRec, section III.E.

  positive_Q, negative_Q: scores of the target and of one sampled item.
  """
  loss_Q = jax.nn.softplus(-positive_Q) + jax.nn.softplus(negative_Q)
  return (weight_Q * loss_Q).sum(), weight_Q.sum()
