"""Collaborative stage: SASRec on the training part; its item table is the collaborative modality.

Writes collaborative.safetensors: `items` float32 [I, D] (row 0 zero) and the model, which is a
baseline.
"""

import jax
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.batches import PackedBatches
from mmesid_jax.data.history_pieces import training_pieces
from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.files import artifact
from mmesid_jax.losses.next_item import binary_cross_entropy, catalogue_cross_entropy
from mmesid_jax.models import flops
from mmesid_jax.models.sasrec import SASRec
from mmesid_jax.parallel.placement import load_model, model_tensors
from mmesid_jax.stages.sequence_task import (
  check_batch_divides,
  evaluation_layout,
  next_item_task,
)
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import Workdir


def init_sasrec(config: ConfigDict, num_items: int, seed: int) -> SASRec:
  """The model of `config` = config.collaborative, before training."""
  return SASRec(
    num_items,
    D=config.width,
    layers=config.layers,
    heads=config.heads,
    positions=config.row_length,
    rate=config.dropout,
    rngs=nnx.Rngs(COLLABORATIVE.key(seed)),
  )


def sasrec_loss(config: ConfigDict, num_items: int):
  """The loss of a batch by config.loss, as step.Loss; a "bce" negative is any other item, one for
  each target."""

  def softmax(model: SASRec, batch: Batch, key: jax.Array):
    scorer = model.scorer(model.hidden(batch, key))
    return catalogue_cross_entropy(scorer, batch.target_Q, batch.weight_Q), {}

  def bce(model: SASRec, batch: Batch, key: jax.Array):
    model_key, negative_key = jax.random.split(key)
    h_QD = model.hidden(batch, model_key)
    # One of the I - 2 other items: an offset from the target, around the circle of items 1..I-1.
    offset_Q = jax.random.randint(negative_key, batch.target_Q.shape, 1, num_items)
    negative_Q = (batch.target_Q - 1 + offset_Q) % num_items + 1
    item_ID = model.item_ID[...]
    scores = [(h_QD * item_ID[i_Q]).sum(-1) for i_Q in (batch.target_Q, negative_Q)]
    return binary_cross_entropy(*scores, batch.weight_Q), {}

  return {"softmax": softmax, "bce": bce}[config.loss]


class CollaborativeStage(Stage):
  """SASRec on the training part of the data."""

  name = "collaborative"
  summary = "SASRec, for collaborative vectors and as a baseline"
  config_keys = ("evaluation.select",)
  model_name = "SASRec"
  reads_features = False

  def check(self, config: ConfigDict) -> None:
    check_batch_divides(self.name, config.collaborative)

  def layout(self, config: ConfigDict) -> Layout:
    c = config.collaborative
    return Layout(c.rows, c.row_length, c.targets)

  def train(self, workdir: Workdir) -> None:
    config, dataset = workdir.config, workdir.dataset
    c, layout = config.collaborative, self.layout(config)
    pieces, counts = training_pieces(dataset, layout, min_history=1)  # SASRec has no empty history
    task = next_item_task(
      self.name,
      config,
      c,
      model=init_sasrec(c, dataset.num_items, config.seed),
      loss=sasrec_loss(c, dataset.num_items),
      batches=PackedBatches(dataset, pieces, layout, seed=config.seed),
      counts=counts,
      evaluator=Evaluator(dataset, evaluation_layout(layout, config.evaluation.targets), "valid"),
      flops=flops.sasrec_flops,
      prompt=0,
    )
    result = self.fit(workdir, task)
    items_ID = model_tensors(result.model)["item_ID"].copy()
    items_ID[0] = 0
    self.write(
      workdir,
      {"items": items_ID},
      result.model,
      cut_users=counts.cut_users,
      **result.summary(config.evaluation.select),
    )

  def load_model(self, workdir: Workdir) -> SASRec:
    config, num_items = workdir.config, workdir.dataset.num_items
    found, _ = self.read(workdir.path, config)
    return load_model(
      lambda: init_sasrec(config.collaborative, num_items, config.seed),
      artifact.strip_prefix(found, "model."),
      str(workdir.artifact(self.name)),
    )


COLLABORATIVE = CollaborativeStage()
