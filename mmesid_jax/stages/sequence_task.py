"""The training task of the stages that predict the next item: SASRec and the recommender."""

import dataclasses
from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.batches import PackedBatches
from mmesid_jax.data.history_pieces import PieceCounts, describe_cuts
from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import Evaluator, RankingModel
from mmesid_jax.models.flops import Work, useful_work
from mmesid_jax.parallel import sharding
from mmesid_jax.training import optimizer
from mmesid_jax.training.loop import Task
from mmesid_jax.training.throughput import Amounts


def evaluation_layout(training: Layout, targets: int) -> Layout:
  """The batch shape of evaluation: training rows, at most `targets` users with one target each."""
  return dataclasses.replace(training, targets=targets)


def check_batch_divides(stage: str, config: ConfigDict) -> None:
  """Raises UserError where the mesh of the context does not divide the stage's batches."""
  sharding.check_divides(f"--config.{stage}.rows", config.rows, "batch")
  sharding.check_divides(f"--config.{stage}.targets", config.targets, "targets")


def next_item_task(
  stage: str,
  config: ConfigDict,
  stage_config: ConfigDict,
  *,
  model: nnx.Module,
  loss: Callable,
  batches: PackedBatches,
  counts: PieceCounts,
  evaluator: Evaluator,
  flops: Callable[[nnx.Module, Work], float],
  prompt: int,
  window: int | None = None,
  ranking: Callable[[nnx.Module], RankingModel] | None = None,
) -> Task:
  """The Task of a stage: validates once an epoch, selects by config.evaluation.select.

  Prints how the users pack into rows, and whether many are cut. flops(model, work) counts the
  operations of a step; `prompt` is the number of prompt tokens before each row, `window` the number
  of positions that a token sees, None = all; `ranking` gives the model that ranks items, None = the
  trained one.
  """
  epoch, microbatches = batches.epoch(), stage_config.get("microbatches", 1)
  if not epoch.batches:
    raise UserError(f"{stage}: no user has enough items before the held-out ones to train on")
  steps_per_epoch = -(-epoch.batches // microbatches)
  steps = steps_per_epoch * stage_config.epochs
  reporter.info(
    f"{stage}: {counts.targets:,} targets of {counts.users:,} users ({counts.cut_users:,} cut), "
    f"{epoch.batches:,} batches an epoch, {epoch.fill:.0%} of their tokens in use"
  )
  if cuts := describe_cuts(counts, f"--config.{stage}.row_length"):
    reporter.info(f"{stage}: {cuts}")

  def amounts(batch: Batch) -> Amounts:
    work = useful_work(batch, prompt, window)
    return Amounts(work.targets, flops(model, work), work.tokens, batch.segment_RT.size)

  return Task(
    name=stage,
    model=model,
    loss=loss,
    batches=batches,
    steps=steps,
    steps_per_epoch=steps_per_epoch,
    validate_every=steps_per_epoch,
    optimizer=optimizer.make_optimizer(stage_config.optimizer, steps),
    schedule=optimizer.learning_rate_schedule(stage_config.optimizer, steps),
    validate=lambda trained: evaluator.metrics(
      ranking(trained) if ranking else trained, config.evaluation.cutoffs
    ),
    select=config.evaluation.select,
    unit="targets",
    amounts=amounts,
    blame=lambda batch: f"users {batches.users(batch)}",
    seed=config.seed,
    microbatches=microbatches,
  )
