"""Blend stage: the recommender beside counts and content; chooses how much the network counts.

Nothing is trained. Writes blend.safetensors: the tables of the evidence and the weights of the
network. The model is read from it and from recommender.safetensors.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.config.schema import flatten
from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.data.whitening import Whitening, whitenings_of
from mmesid_jax.display import reporter
from mmesid_jax.evaluation.evaluator import Evaluator, model_catalogue
from mmesid_jax.files import artifact
from mmesid_jax.models.blend import BlendModel
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.stages.evidence_stages import (
  CONTENT,
  COUNTS,
  HISTORY,
  SEARCH_USERS,
  make_model,
  selected_values,
  selection_metric,
)
from mmesid_jax.stages.recommender_stage import RECOMMENDER, load_recommender
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import Workdir

WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # to choose from, at both ends
QUANTILES = 17  # of the amount of evidence


class Choice(NamedTuple):
  """Weights of the network where there is least and most evidence, and what they are worth."""

  weight_2: np.ndarray
  value: float  # mean over validation users of the metric that selects
  evidence_alone: float  # the same with weight 0


class BlendStage(Stage):
  """The recommender beside counts and content."""

  name = "blend"
  summary = "the recommender beside counts and content"
  config_keys = ("evaluation.select",)
  model_name = "MME-SID + evidence"
  is_random = False  # beyond what its upstream is

  def evidence(self, config: ConfigDict) -> Stage:
    """The stage whose evidence is added: with content where there is any."""
    return CONTENT if CONTENT.applies(config) else COUNTS

  def upstream(self, config: ConfigDict) -> tuple[Stage, ...]:
    return (self.evidence(config), RECOMMENDER)

  def layout(self, config: ConfigDict) -> Layout:
    return dataclasses.replace(RECOMMENDER.layout(config), history=HISTORY)

  def train(self, workdir: Workdir) -> None:
    config = workdir.config
    found, header = self.evidence(config).read(workdir.path)
    layout = evaluation_layout(self.layout(config), config.evaluation.targets)
    evaluator = Evaluator(workdir.dataset, layout, "valid", most_users=SEARCH_USERS)
    model = BlendModel(
      RECOMMENDER.load_model(workdir),
      make_model(found, header["settings"]),
      np.zeros(QUANTILES),
      np.zeros(2),
    )
    quantile_E = _quantiles(model, evaluator)
    model.quantile_E.set_value(jnp.asarray(quantile_E))
    metric = selection_metric(config)
    choice = choose_weights(model, evaluator, config)
    least, most = (float(w) for w in choice.weight_2)
    reporter.info(
      f"{self.name}: the network counts {least:g} where there is least evidence and {most:g} where "
      f"there is most: valid {metric} (mean of masked and unmasked) {choice.value:.4f}, evidence "
      f"alone {choice.evidence_alone:.4f}"
    )
    if not choice.weight_2.any():
      reporter.warn(f"{self.name}: the network adds nothing to counts and content on these data")
    self.write(
      workdir,
      {**found, "quantiles": quantile_E, "weights": choice.weight_2},
      None,
      valid=choice.value,
      evidence_alone=choice.evidence_alone,
      settings=header["settings"],
      config=flatten(config),
    )

  def load_model(self, workdir: Workdir) -> BlendModel:
    return load_blend(workdir.path, workdir.config)


def load_blend(path: pathlib.Path, config: ConfigDict) -> BlendModel:
  """The model of the workdir `path`, from blend.safetensors and recommender.safetensors alone."""
  found, header = BLEND.read(path)
  evidence = make_model(found, header["settings"])
  network = load_recommender(path, config)
  return BlendModel(network, evidence, found["quantiles"], found["weights"])


def load_content_whitenings(path: pathlib.Path) -> dict[str, Whitening]:
  """modality -> whitening of the evidence in the workdir `path`, for new items."""
  found, _ = BLEND.read(path)
  return whitenings_of(artifact.strip_prefix(found, "whitening."))


@functools.partial(jax.jit, static_argnums=0)
def _evidence(graph: nnx.GraphDef, state: nnx.State, batch: Batch) -> jax.Array:
  return nnx.merge(graph, state).evidence.evidence(batch.history_QX)


def _quantiles(model: BlendModel, evaluator: Evaluator) -> np.ndarray:
  """Amounts of evidence that equal shares of the evaluator's users have at most, [QUANTILES]."""
  place_model(model)
  graph, state = nnx.split(model)
  amounts = []
  for batch in evaluator.batches():
    amount_Q = jax.device_get(_evidence(graph, state, batch))
    amounts.append(amount_Q[np.asarray(batch.weight_Q) > 0])
  quantile_E = np.quantile(np.concatenate(amounts), np.linspace(0, 1, QUANTILES))
  return np.maximum.accumulate(quantile_E).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _parts(graph: nnx.GraphDef, state: nnx.State, catalogue: jax.Array, batch: Batch):
  """Scores [Q, I] of the evidence and of the network, and `BlendModel.share` [Q]."""
  model = nnx.merge(graph, state)
  evidence_QI = model.evidence.scorer(batch.history_QX).score_all()
  network_QI = model.network.score_batch(batch, catalogue)
  return evidence_QI, network_QI, model.share(batch.history_QX)


@jax.jit
def _sum(evidence_QI, network_QI, share_Q, weight_2) -> jax.Array:
  weight_Q = weight_2[0] + (weight_2[1] - weight_2[0]) * share_Q
  return evidence_QI + weight_Q[:, None] * network_QI


def choose_weights(model: BlendModel, evaluator: Evaluator, config: ConfigDict) -> Choice:
  """Tries all pairs out of WEIGHTS on the evaluator's users, and takes the best by the metric that
  selects, as the mean of both protocols; no network at all where its gain is not above the standard
  error over users."""
  place_model(model)
  graph, state = nnx.split(model)
  catalogue = model_catalogue(graph, state)
  weight_E2 = np.float32([*itertools.product(WEIGHTS, WEIGHTS)])

  def scores(batch: Batch) -> Iterator[jax.Array]:
    parts = _parts(graph, state, catalogue, batch)
    yield from (_sum(*parts, weight_2) for weight_2 in weight_E2)
    bar.update(int(jnp.sum(batch.weight_Q > 0)))

  with reporter.progress(label=f"{BLEND.name}: weights", total=len(evaluator), unit="users") as bar:
    ranks = evaluator.shared_ranks(scores, len(weight_E2))
  value_EU = np.stack([selected_values(config, of_pair) for of_pair in ranks])
  best = best_pair(value_EU)
  means_E = value_EU.mean(1)
  return Choice(weight_E2[best], float(means_E[best]), float(means_E[0]))


def best_pair(value_EU: np.ndarray) -> int:
  """The row with the largest mean over users; the first, no network, where the gain over it is not
  above its standard error."""
  best = int(value_EU.mean(1).argmax())
  gain_U = value_EU[best] - value_EU[0]
  return best if gain_U.mean() > gain_U.std() / len(gain_U) ** 0.5 else 0


BLEND = BlendStage()
