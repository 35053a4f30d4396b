"""Losses of next-item prediction over the whole catalogue, and what stands in for them where it is
large, or in published work."""

import jax
import jax.numpy as jnp

from mmesid_jax.models.catalogue_scores import Scorer, candidates
from mmesid_jax.parallel.sharding import mesh_axes, pick, shards, spec

LARGEST = 2**28  # scores held at once, 1 GiB of float32; more are taken in chunks


def cross_entropy(
  scores_QI: jax.Array, target_Q: jax.Array, weight_Q: jax.Array, num_items: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """Sum over targets of -log softmax(scores)[target] over items 1 .. num_items (None: all columns
  behind the first), and the sum of weights.

  Column 0 is padding and takes no part. float32, no one-hot. Source: MME-SID, recommendation loss.
  """
  columns = scores_QI.shape[1]
  real_I = candidates(columns, num_items or columns)
  scores_QI = jnp.where(real_I, scores_QI.astype(jnp.float32), -jnp.inf)
  loss_Q = jax.nn.logsumexp(scores_QI, axis=1) - pick(scores_QI, target_Q)
  return _weighted(loss_Q, weight_Q)


def _weighted(loss_Q: jax.Array, weight_Q: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The weighted sum, and the sum of weights."""
  # An unused place has target 0, whose score may be -inf: select, since 0 * inf is NaN.
  return jnp.where(weight_Q > 0, weight_Q * loss_Q, 0).sum(), weight_Q.sum()


def chunked_cross_entropy(
  scorer: Scorer, target_Q: jax.Array, weight_Q: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """`cross_entropy` of all scores, holding those of `chunk` items at a time, [Q, chunk].

  The sum of exponentials grows chunk by chunk; the backward pass computes a chunk's scores again.
  Where a mesh cuts the catalogue, every device goes through its own part. Raises ValueError for a
  chunk below 1.
  """
  if chunk < 1:
    raise ValueError(f"a chunk of {chunk} items")
  names = mesh_axes("items")
  if shards("items") == 1:
    largest_Q, sum_Q = _sum_of_exponentials(scorer, 0, chunk)
  else:

    def local(arrays):
      part = Scorer(*arrays, num_items=scorer.last)
      first = jax.lax.axis_index(names) * part.items
      largest_Q, sum_Q = _sum_of_exponentials(part, first, chunk, names)
      overall_Q = jax.lax.pmax(jax.lax.stop_gradient(largest_Q), names)
      return overall_Q, jax.lax.psum(sum_Q * jnp.exp(largest_Q - overall_Q), names)

    queries, tables = spec("targets"), spec("items", None)
    specs = (
      (spec("targets", None),) * len(scorer.query),
      (tables,) * len(scorer.table),
      tuple(None if offset is None else queries for offset in scorer.offset),
      None if scorer.weight_IS is None else tables,
    )
    arrays = (scorer.query, scorer.table, scorer.offset, scorer.weight_IS)
    largest_Q, sum_Q = jax.shard_map(local, in_specs=(specs,), out_specs=queries)(arrays)
  loss_Q = largest_Q + jnp.log(sum_Q) - scorer.own(target_Q)
  return _weighted(loss_Q, weight_Q)


def _sum_of_exponentials(scorer: Scorer, first, chunk: int, names: tuple[str, ...] = ()):
  """m and sum_i exp(score[i] - m) of the scorer's rows, [Q] each; their first is item `first`.
  names: the mesh axes that the rows are a part on."""

  @jax.checkpoint
  def add(largest_and_sum, rows_and_number):
    largest_Q, sum_Q = largest_and_sum
    rows, number = rows_and_number
    row_N = number * chunk + jnp.arange(chunk)
    item_N = first + row_N
    real_N = (item_N > 0) & (item_N <= scorer.last) & (row_N < scorer.items)
    scores_QN = jnp.where(real_N, scorer.of(rows).astype(jnp.float32), -jnp.inf)
    # What is subtracted and added again has no gradient of its own.
    larger_Q = jax.lax.stop_gradient(jnp.maximum(largest_Q, scores_QN.max(1)))
    sum_Q = sum_Q * jnp.exp(largest_Q - larger_Q) + jnp.exp(scores_QN - larger_Q[:, None]).sum(1)
    return (larger_Q, sum_Q), None

  lowest = jnp.finfo(jnp.float32).min  # not -inf: a chunk of padding alone would give inf - inf
  Q = len(scorer.query[0])
  start = jnp.full(Q, lowest), jnp.zeros(Q)
  if names:
    start = jax.lax.pcast(start, ("data", *names), to="varying")
  chunks = scorer.chunks(chunk)
  numbers = jnp.arange(-(-scorer.items // chunk))
  found, _ = jax.lax.scan(add, start, (chunks, numbers))
  return found


def catalogue_cross_entropy(
  scorer: Scorer, target_Q: jax.Array, weight_Q: jax.Array, chunk: int = 0
) -> tuple[jax.Array, jax.Array]:
  """`cross_entropy`, by chunks where asked for, or (chunk 0) where all scores exceed LARGEST."""
  if not chunk and len(target_Q) * scorer.items <= LARGEST:
    return cross_entropy(scorer.all(), target_Q, weight_Q, scorer.last)
  return chunked_cross_entropy(
    scorer, target_Q, weight_Q, chunk or max(1, LARGEST // len(target_Q))
  )


def sampled_cross_entropy(
  scorer: Scorer,
  target_Q: jax.Array,
  weight_Q: jax.Array,
  negative_N: jax.Array,
  log_expected_N: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy against sampled items, and the sum of weights.

  negative_N: items drawn with replacement; log_expected_N: the log of how often each was to be
  expected among them. exp(target) + sum over negatives of exp(score) / expected is an unbiased
  estimate of the sum over the catalogue; a negative that is the target does not count. Source:
  Bengio and Senecal 2008 (importance sampling, the log-Q correction).
  """
  target_score_Q = scorer.own(target_Q)
  scores_QN = scorer.chosen(negative_N).astype(jnp.float32) - log_expected_N
  scores_QN = jnp.where(negative_N == target_Q[:, None], -jnp.inf, scores_QN)
  all_QN = jnp.concatenate([target_score_Q[:, None], scores_QN], axis=1)
  loss_Q = jax.nn.logsumexp(all_QN, axis=1) - target_score_Q
  return _weighted(loss_Q, weight_Q)


def binary_cross_entropy(
  positive_Q: jax.Array, negative_Q: jax.Array, weight_Q: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Sum over targets of -log sigmoid(positive) - log(1 - sigmoid(negative)), and the sum of
  weights.

  Scores of the target and of one sampled negative. Source: SASRec, section III.E.
  """
  loss_Q = jax.nn.softplus(-positive_Q) + jax.nn.softplus(negative_Q)
  return (weight_Q * loss_Q).sum(), weight_Q.sum()
