"""What the two next-item stages share: how their batches, validation and schedule become a Task."""

import dataclasses
from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.loader import PackedBatches
from mmesid_jax.data.packing import Layout
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.training import optimizer
from mmesid_jax.training.loop import Task


def evaluation_layout(training: Layout, targets: int) -> Layout:
  """Rows as in training; one target a user, so a batch has `targets` users at the most."""
  return dataclasses.replace(training, targets=targets)


def next_item_task(
  stage: str,
  config: ConfigDict,
  stage_config: ConfigDict,
  *,
  model: nnx.Module,
  loss: Callable,
  batches: PackedBatches,
  evaluator: Evaluator,
) -> Task:
  """Validates once an epoch, selects by config.evaluation.select."""
  steps_an_epoch = batches.batches_an_epoch()
  steps = steps_an_epoch * stage_config.epochs
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
    work=lambda batch: int(batch.weight_Q.sum()),
    blame=lambda batch: f"users {batches.users(batch)}",
    seed=config.seed,
  )
