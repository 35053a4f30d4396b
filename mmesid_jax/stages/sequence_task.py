"""What the two next-item stages share: how their batches, validation and schedule become a Task."""

import dataclasses
from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.batches import PackedBatches
from mmesid_jax.data.packing import Batch, Layout, PieceCounts
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.models.flops import Work, useful
from mmesid_jax.parallel import sharding
from mmesid_jax.training import optimizer
from mmesid_jax.training.loop import Task
from mmesid_jax.training.throughput import Amounts


def evaluation_layout(training: Layout, targets: int) -> Layout:
  """Rows as in training; one target a user, so a batch has `targets` users at the most."""
  return dataclasses.replace(training, targets=targets)


def check_divides(stage: str, config: ConfigDict) -> None:
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
) -> Task:
  """Says how the users pack. Validates once an epoch, selects by config.evaluation.select; flops
  counts a step of the model behind so many prompt tokens."""
  epoch, microbatches = batches.epoch(), stage_config.get("microbatches", 1)
  if not epoch.batches:
    raise UserError(f"{stage}: no user has enough items before the held-out ones to train on")
  steps_an_epoch = -(-epoch.batches // microbatches)
  steps = steps_an_epoch * stage_config.epochs
  print(
    f"{stage}: {counts.targets:,} targets of {counts.users:,} users ({counts.cut_users:,} cut), "
    f"{epoch.batches:,} batches an epoch, {epoch.fill:.0%} of their tokens in use"
  )

  def amounts(batch: Batch) -> Amounts:
    work = useful(batch, prompt)
    return Amounts(work.targets, flops(model, work), work.tokens, batch.segment_RT.size)

  return Task(
    name=stage,
    model=model,
    loss=loss,
    batches=batches,
    steps=steps,
    validate_every=steps_an_epoch,
    optimizer=optimizer.adamw(stage_config.optimizer, steps),
    schedule=optimizer.schedule(stage_config.optimizer, steps),
    validate=lambda trained: evaluator.metrics(trained, config.evaluation.cutoffs),
    select=config.evaluation.select,
    unit="targets",
    amounts=amounts,
    blame=lambda batch: f"users {batches.users(batch)}",
    seed=config.seed,
    microbatches=microbatches,
  )
