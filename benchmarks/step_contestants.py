"""What recommender_step.py times: ours in shared-prefix rows and alone, and PyTorch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import alone
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.config.schema import default_config
from mmesid_jax.data.dataset import Dataset
from mmesid_jax.data.packing import Batch
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.losses.next_item import cross_entropy
from mmesid_jax.models.flops import Work, useful_work
from mmesid_jax.models.fusion import normalized_frequency
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel.variables import Pretrained
from mmesid_jax.stages import recommender_stage as stage
from mmesid_jax.stages.backbone import llama_config
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.training.optimizer import make_optimizer
from mmesid_jax.training.step import initial_state, make_step

RELEASED_STEP, RELEASED_MICRO = 16, 2  # samples


class Inputs(NamedTuple):
  """config: config.recommender; tables: what its model is built around; batches: packed ones of the
  dataset; samples: all of their targets; released: how many of those torch_released runs."""

  config: ConfigDict
  tables: dict[str, Any]
  dataset: Dataset
  batches: list[Batch]
  samples: list[alone.Sample]
  released: int

  def by_length(self) -> list[tuple[int, list[alone.Sample]]]:
    """The samples in batches of as many targets as a packed one has on average."""
    most = -(-len(self.samples) // len(self.batches))
    return alone.by_length(self.samples, self.config.prompt.response, most)

  def work(self, samples: list[alone.Sample]) -> Work:
    prompt = self.config.prompt
    return alone.work(samples, prompt.length, prompt.response)


class Contestant(NamedTuple):
  """run trains on all targets once and returns how many they are; work: of its steps."""

  run: Callable[[], float]
  targets: int
  work: list[Work]
  trained: int


def contestant(name: str, inputs: Inputs, micro_batch: int) -> Contestant:
  """By its name in recommender_step.py. micro_batch: most samples of one of torch_good's, 0 = no
  limit."""
  if name == "torch_released":
    return released(inputs)
  if name == "torch_good":
    return good(inputs, micro_batch)
  if name == "evaluation":
    return evaluation(inputs)
  way, _, backbone = name.partition("_")
  if way == "packed":
    batches, hidden = inputs.batches, RecommenderModel.hidden
    work = [useful_work(batch, inputs.config.prompt.length) for batch in batches]
  else:
    groups, hidden = inputs.by_length(), alone.hidden
    batches = alone.stacked(groups, inputs.config.prompt.response)
    work = [inputs.work(samples) for _, samples in groups]
  if backbone:
    return backbone_alone(inputs, batches, hidden, work)
  packed_loss = stage.recommender_loss(inputs.config, inputs.tables["counts_I"])
  return ours(inputs, batches, packed_loss if way == "packed" else alone_loss, work)


def alone_loss(model, batch, key):
  """`stage.loss` of a stacked batch."""
  scores_QI = model.scores(alone.hidden(model, batch, key))
  return cross_entropy(scores_QI, batch.target_Q[:, 0], batch.weight_Q[:, 0]), {}


def ours(inputs: Inputs, batches: list[Batch], loss: Callable, work: list[Work]) -> Contestant:
  """The step that training takes."""
  graph, params, frozen = nnx.split(built(inputs), nnx.Param, ...)
  optimizer = make_optimizer(inputs.config.optimizer, steps=1000)
  step = make_step(loss, optimizer, graph, seed=0)
  trained, state = _size(params), initial_state(params, optimizer)

  def run() -> float:
    nonlocal state
    for batch in batches:
      state, _ = step(state, frozen, batch)
    jax.block_until_ready(state)
    return len(inputs.samples)

  return Contestant(run, len(inputs.samples), work, trained)


def backbone_alone(
  inputs: Inputs, batches: list[Batch], hidden: Callable, work: list[Work]
) -> Contestant:
  """Gradient of a fixed projection of the hidden states, for everything that is trained."""
  graph, params, frozen = nnx.split(built(inputs), nnx.Param, ...)
  direction_D = jax.random.normal(jax.random.key(0), (inputs.config.width,))

  @jax.jit
  def gradient(params, frozen, batch):
    def projected(params):
      o_QD = hidden(nnx.merge(graph, params, frozen), batch, jax.random.key(1))
      return ((o_QD @ direction_D) * batch.weight_Q.reshape(-1)).sum()

    return jax.value_and_grad(projected)(params)

  def run() -> float:
    for batch in batches:
      jax.block_until_ready(gradient(params, frozen, batch))
    return len(inputs.samples)

  without_scores = [w._replace(targets=0) for w in work]
  return Contestant(run, len(inputs.samples), without_scores, _size(params))


def evaluation(inputs: Inputs) -> Contestant:
  """Ranks of all test items, in the batches that training validates with."""
  model, targets = built(inputs), default_config().evaluation.targets
  layout = evaluation_layout(stage.batch_layout(inputs.config), targets)
  evaluator = Evaluator(inputs.dataset, layout, "test")

  def run() -> float:
    evaluator.model_ranks(model)
    return len(evaluator)

  return Contestant(run, len(evaluator), [], trained=0)


def built(inputs: Inputs) -> RecommenderModel:
  """Our model; weights that a checkpoint would fill are random."""
  model = stage.init_recommender(inputs.config, 0, **inputs.tables)
  keys = nnx.Rngs(1).params
  for _, node in nnx.iter_graph(model.backbone):
    if isinstance(node, Pretrained) and node[...].ndim > 2:  # norms' scales, [layers, D], stay 1
      node[...] = _drawn(node[...], keys())
  return model


@functools.partial(jax.jit, donate_argnums=0)
def _drawn(x: jax.Array, key: jax.Array) -> jax.Array:
  """Weights or codes like x, in its place, a layer at a time: the most memory that a process has
  had is to be that of its steps."""

  def layer(key: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.integer):
      return jax.random.randint(key, x.shape[1:], 0, 128, x.dtype)
    return 0.02 * jax.random.normal(key, x.shape[1:], x.dtype)

  return jax.lax.map(layer, jax.random.split(key, len(x)))


def _size(params: nnx.State) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def released(inputs: Inputs) -> Contestant:
  """Micro-batches of 2, 8 a step, of samples drawn evenly over the lengths in the pool."""
  from torch_recommender import ReleasedStyle

  by_size = sorted(inputs.samples, key=lambda sample: len(sample[0]))
  count = min(inputs.released, len(by_size))
  places = ((np.arange(count) + 0.5) / count * len(by_size)).astype(int)
  samples = [by_size[i] for i in np.random.default_rng(0).permutation(places)]
  steps = [samples[i : i + RELEASED_STEP] for i in range(0, count, RELEASED_STEP)]
  # Two samples leave room enough for their activations.
  return in_torch(inputs, ReleasedStyle, steps, RELEASED_MICRO, remat="none")


def good(inputs: Inputs, micro_batch: int) -> Contestant:
  from torch_recommender import Good

  steps = [samples for _, samples in inputs.by_length()]
  remat = inputs.config.backbone.remat
  return in_torch(inputs, Good, steps, micro_batch or len(inputs.samples), remat)


def in_torch(
  inputs: Inputs, training: type, steps: list[list[alone.Sample]], micro_batch: int, remat: str
) -> Contestant:
  """On a GPU if there is one."""
  import torch
  from torch_recommender import TorchRecommender

  c, tables = inputs.config, dict(inputs.tables)
  torch.manual_seed(0)
  on_gpu = torch.cuda.is_available()
  with torch.device("cuda" if on_gpu else "cpu"):
    model = TorchRecommender(
      dataclasses.replace(llama_config(c), remat=remat),
      frequency_I=normalized_frequency(tables.pop("counts_I")),
      **tables,
      encoder=c.encoder,
      temperature=c.gate_temperature,
      P=c.prompt.length,
      S=c.prompt.response,
      item_dropout=c.item_dropout,
    )
  optimizer = c.optimizer
  trainer = training(
    model, learning_rate=optimizer.learning_rate, weight_decay=optimizer.weight_decay
  )
  batches = [trainer.micro_batches(*zip(*s, strict=True), micro_batch) for s in steps]
  targets = sum(map(len, steps))

  def run() -> float:
    for micro_batches in batches:
      trainer.step(micro_batches)
    if on_gpu:
      torch.cuda.synchronize()
    return targets

  trained = sum(p.numel() for p in trainer.trained)
  return Contestant(run, targets, [inputs.work(samples) for samples in steps], trained)


def peak_memory(name: str) -> float | None:
  """GiB that the contestant's process has had on its GPU at most; None without one."""
  if name.startswith("torch"):
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
  memory = jax.local_devices()[0].memory_stats()
  return memory["peak_bytes_in_use"] / 2**30 if memory else None
