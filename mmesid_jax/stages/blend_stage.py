"""Blend stage: chooses the weight of the recommender's scores beside those of counts and content,
and fits the reranker of the best candidates, all on validation users.

Writes blend.safetensors: the tables of the evidence, the weights of the network, the reranker. The
network itself is that of the recommender stage.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.data.whitening import Whitening, whitenings_of
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import Evaluator, model_catalogue
from mmesid_jax.files import artifact
from mmesid_jax.files.artifact_form import CHOSEN_BLEND, find_fault, find_wrong_values
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.models.blend import CANDIDATES, NETWORK_FEATURES, BlendModel, network_weight
from mmesid_jax.models.evidence import NEWEST, EvidenceModel
from mmesid_jax.models.layers.reranker import RerankerParams
from mmesid_jax.parallel.placement import place_model
from mmesid_jax.parallel.sharding import constrain
from mmesid_jax.stages.evidence_stages import (
  CONTENT,
  COUNTS,
  SEARCH_USERS,
  make_model,
  search_evaluator,
  selected_values,
  selection_metric,
)
from mmesid_jax.stages.recommender_stage import RECOMMENDER, load_recommender
from mmesid_jax.stages.reranker_fit import (
  FEWEST,
  RERANKER_NUMBERS,
  collect_examples,
  fit_reranker,
  with_some_new,
)
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import Workdir

NETWORK_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # to choose from, at both ends
QUANTILES = 17  # of the amount of evidence
WEIGHTING = ("amounts", "shares", "weights")  # tensors of a BlendModel's arguments
NEWNESS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5)  # nu of new items, to choose from
SURE = 2.0  # standard errors that a gain must exceed to count
NEW = "newness"  # the tensor with nu
RERANKER = "reranker."  # begins the names of the reranker's tensors


class Choice(NamedTuple):
  """Weights of the network where there is least and most evidence, and what they are worth."""

  weight_2: np.ndarray
  value_U: np.ndarray  # the metric that selects, of every validation user
  evidence_alone: float  # its mean with weight 0
  tried: int

  @property
  def value(self) -> float:
    """The mean over users."""
    return float(self.value_U.mean())


class BlendStage(Stage):
  """The sum of the recommender's scores and those of counts and content."""

  name = "blend"
  summary = "the recommender's scores added to those of counts and content"
  config_keys = ("evaluation.select",)
  model_name = "MME-SID + evidence"
  is_random = False  # beyond what its upstream is

  def evidence(self, config: ConfigDict) -> Stage:
    """The stage whose evidence is added: with content where there is any."""
    return CONTENT if CONTENT.applies(config) else COUNTS

  def upstream(self, config: ConfigDict) -> tuple[Stage, ...]:
    return (self.evidence(config), RECOMMENDER)

  def further_inputs(self, config: ConfigDict) -> dict[str, str]:
    options = NETWORK_WEIGHTS, NEWNESS
    numbers = QUANTILES, SURE, SEARCH_USERS, NEWEST, CANDIDATES, RERANKER_NUMBERS
    return {"search": json_sha256([options, numbers])}

  def layout(self, config: ConfigDict) -> Layout:
    return RECOMMENDER.layout(config)

  def choice(self, workdir: Workdir) -> dict[str, Any]:
    tensors, _ = self.read(workdir.path, workdir.config)
    names = (*WEIGHTING, NEW)
    return {n: x.tolist() for n, x in tensors.items() if n in names or n.startswith(RERANKER)}

  def find_wrong_choice(self, chosen: Mapping[str, Any], workdir: Workdir) -> str | None:
    try:
      tensors = {name: np.float32(x) for name, x in chosen.items()}
    except (ValueError, TypeError, OverflowError):
      return "holds other things than numbers"
    described = {name: ("float32", x.shape) for name, x in tensors.items()}
    header = {"num_items": workdir.dataset.num_items}
    parts = CHOSEN_BLEND, header, described
    infinite = (f"{n} is not finite" for n, x in tensors.items() if not np.isfinite(x).all())
    return find_fault(*parts) or next(infinite, None) or find_wrong_values(*parts, tensors)

  def train(self, workdir: Workdir) -> None:
    config = workdir.config
    tensors, header = self.evidence(config).read(workdir.path, config)
    if workdir.is_refit:
      tensors |= {name: np.float32(x) for name, x in self.chosen(workdir).items()}
      self.write(workdir, tensors, None, settings=header["settings"])
      return
    evaluator = search_evaluator(workdir, self)
    network, evidence = RECOMMENDER.load_model(workdir), make_model(tensors, header["settings"])
    shares = amounts_and_shares(evidence, evaluator)
    model = BlendModel(network, evidence, *shares, np.zeros(2))
    metric = f"valid {selection_metric(config)} (mean of masked and unmasked)"
    choice = choose_weights(model, evaluator, config)
    least, most = (float(w) for w in choice.weight_2)
    reporter.info(
      f"{self.name}: the network's weight is {least:g} where there is least evidence and {most:g} "
      f"where there is most: {metric} {choice.value:.4f}, evidence alone "
      f"{choice.evidence_alone:.4f} ({len(evaluator):,} users, {choice.tried} pairs)"
    )
    summed = BlendModel(network, evidence, *shares, choice.weight_2)
    newness = choose_newness(summed, evaluator, config) if evidence.unit_IW else 0.0
    summed = summed.replace(evidence=evidence.with_newness(newness))
    if newness:
      reporter.info(f"{self.name}: a new item gets {newness:g} for being new")
    params, reranked = choose_reranker(summed, choice.value_U, evaluator, config)
    if reranked is None:
      reporter.info(
        f"{self.name}: too few users to fit a reranker on; at least {FEWEST} are needed"
      )
    else:
      kept = "left out" if params is None else "kept"
      reporter.info(
        f"{self.name}: the reranker is {kept}: {metric} {reranked:.4f} with it, "
        f"{choice.value:.4f} without"
      )
    if config.blend.network and not choice.weight_2.any() and params is None:
      reporter.warn(f"{self.name}: the network adds nothing to counts and content on these data")
    tensors |= {"amounts": shares[0], "shares": shares[1], "weights": choice.weight_2}
    tensors |= {NEW: np.asarray(newness, np.float32)}
    tensors |= {} if params is None else {RERANKER + n: x for n, x in params._asdict().items()}
    self.write(
      workdir,
      tensors,
      None,
      valid=choice.value if params is None else reranked,
      summed=choice.value,
      reranked=reranked,
      evidence_alone=choice.evidence_alone,
      settings=header["settings"],
    )

  def load_model(self, workdir: Workdir) -> BlendModel:
    return load_blend(workdir.path, workdir.config)

  def fits(self, workdir: Workdir) -> bool:
    return fits_network(workdir.path)


def load_blend(
  path: pathlib.Path, config: ConfigDict, refreshed: Mapping[str, np.ndarray] | None = None
) -> BlendModel:
  """The model of the workdir `path`: blend.safetensors beside the recommender. Raises UserError,
  also where the weights were chosen for another recommender. refreshed: tensors that replace those
  of the file."""
  if not fits_network(path):
    raise UserError(
      f"{blend_file(path)}: made for another recommender than the one beside it; run "
      f"mmesid_jax.train with the stage {BLEND.name} again, or serve the network alone "
      "(--model=network)"
    )
  tensors, header = BLEND.read(path, config)
  tensors |= refreshed or {}
  evidence = make_model(tensors, header["settings"]).with_newness(tensors[NEW])
  network = load_recommender(path, config)
  model = BlendModel(network, evidence, *(tensors[name] for name in WEIGHTING))
  reranker = artifact.strip_prefix(tensors, RERANKER)
  if not reranker:
    return model
  if (found := len(reranker["mean_F"])) != (expected := model.num_features):
    raise UserError(
      f"{blend_file(path)}: a reranker of {found} features, expected {expected}; run "
      f"mmesid_jax.train with the stage {BLEND.name} to write it again (delete the file first)"
    )
  return model.with_reranker(RerankerParams(**reranker))


def blend_file(path: pathlib.Path) -> pathlib.Path:
  """Where the artifact of the workdir `path` is, if there is one."""
  return path / f"{BLEND.name}.safetensors"


def fits_network(path: pathlib.Path) -> bool:
  """Whether the blend in the workdir `path` was made for the recommender beside it, and has as many
  items."""
  blend = artifact.read_header(blend_file(path), BLEND.name)
  network = artifact.read_header(path / f"{RECOMMENDER.name}.safetensors", RECOMMENDER.name)
  same_items = blend["num_items"] == network["num_items"]
  return same_items and blend["upstream"][RECOMMENDER.name] == network["fingerprint"]


def load_content_whitenings(path: pathlib.Path) -> dict[str, Whitening]:
  """modality -> whitening of the evidence in the workdir `path`, for new items."""
  prefix = "whitening."
  found, _ = artifact.read_artifact(blend_file(path), BLEND.name, prefix=prefix)
  return whitenings_of(artifact.strip_prefix(found, prefix))


@functools.partial(jax.jit, static_argnums=0)
def _evidence(graph: nnx.GraphDef, state: nnx.State, batch: Batch) -> jax.Array:
  amount_Q = nnx.merge(graph, state).evidence(batch.history_QX)
  return constrain(amount_Q, None)  # every process reads all of them


def amounts_and_shares(model: EvidenceModel, evaluator: Evaluator) -> tuple[np.ndarray, np.ndarray]:
  """Amounts of evidence, increasing, float32 [E], and the shares of the evaluator's users who have
  less, float32 [E]; E is at most QUANTILES, and less where many users have equally much."""
  place_model(model)
  graph, state = nnx.split(model)
  amounts = []
  for batch in evaluator.batches():
    amount_Q = jax.device_get(_evidence(graph, state, batch))
    amounts.append(amount_Q[np.asarray(batch.weight_Q) > 0])
  quantile_E = np.quantile(np.concatenate(amounts), np.linspace(0, 1, QUANTILES), method="lower")
  amount_E, first_E = np.unique(quantile_E, return_index=True)
  return amount_E, (first_E / (QUANTILES - 1)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _parts(graph: nnx.GraphDef, state: nnx.State, catalogue: jax.Array, batch: Batch):
  """Scores [Q, I] of the evidence and of the network, and `BlendModel.share` [Q]."""
  model = nnx.merge(graph, state)
  evidence_QI = model.evidence.scores(batch.history_QX)
  network_QI = model.network.score_batch(batch, catalogue)
  return evidence_QI, network_QI, model.share(batch.history_QX)


@jax.jit
def _sum(evidence_QI, network_QI, share_Q, weight_2) -> jax.Array:
  return evidence_QI + network_weight(weight_2, share_Q)[:, None] * network_QI


def choose_weights(model: BlendModel, evaluator: Evaluator, config: ConfigDict) -> Choice:
  """Tries all pairs out of NETWORK_WEIGHTS on the evaluator's users, and takes the best by the
  metric that selects, as the mean of both protocols; or no network, as `best_pair` says."""
  place_model(model)
  graph, state = nnx.split(model)
  catalogue = model_catalogue(graph, state)
  tried = NETWORK_WEIGHTS if config.blend.network else NETWORK_WEIGHTS[:1]
  weight_E2 = np.float32([*itertools.product(tried, repeat=2)])

  def scores(batch: Batch) -> Iterator[jax.Array]:
    parts = _parts(graph, state, catalogue, batch)
    yield from (_sum(*parts, weight_2) for weight_2 in weight_E2)
    bar.update(int(jnp.sum(batch.weight_Q > 0)))

  with reporter.progress(label=f"{BLEND.name}: weights", total=len(evaluator), unit="users") as bar:
    ranks = evaluator.shared_ranks(scores, len(weight_E2))
  value_EU = np.stack([selected_values(config, of_pair) for of_pair in ranks])
  best = best_pair(value_EU)
  return Choice(weight_E2[best], value_EU[best], float(value_EU[0].mean()), len(weight_E2))


def best_pair(value_EU: np.ndarray) -> int:
  """The row with the largest mean over users; the first, no network, where the gain over it is not
  sure: the best of many pairs gains a little by chance."""
  best = int(value_EU.mean(1).argmax())
  return best if is_sure(value_EU[best] - value_EU[0]) else 0


def is_sure(gain_U: np.ndarray) -> bool:
  """Whether the mean is above SURE standard errors."""
  return bool(gain_U.mean() > SURE * gain_U.std() / len(gain_U) ** 0.5)


@functools.partial(jax.jit, static_argnums=0)
def _scores(graph: nnx.GraphDef, state: nnx.State, catalogue: jax.Array, batch: Batch):
  return nnx.merge(graph, state).score_batch(batch, catalogue)


def choose_newness(model: BlendModel, evaluator: Evaluator, config: ConfigDict) -> float:
  """The best of NEWNESS by the metric that selects, where some of the items are treated as new.

  Never 0, because the reranker recognizes new items by this term. model: with nu 0.
  """
  model = with_some_new(model)
  place_model(model)
  graph, state = nnx.split(model)
  catalogue = model_catalogue(graph, state)

  def scores(batch: Batch) -> Iterator[jax.Array]:
    score_QI = _scores(graph, state, catalogue, batch)
    yield from (score_QI + newness * model.evidence.is_new_I[...] for newness in NEWNESS)
    bar.update(int(jnp.sum(batch.weight_Q > 0)))

  label = f"{BLEND.name}: new items"
  with reporter.progress(label=label, total=len(evaluator), unit="users") as bar:
    ranks = evaluator.shared_ranks(scores, len(NEWNESS))
  values = [selected_values(config, of_one).mean() for of_one in ranks]
  return NEWNESS[int(np.argmax(values))]


def choose_reranker(
  model: BlendModel, value_U: np.ndarray, evaluator: Evaluator, config: ConfigDict
) -> tuple[RerankerParams | None, float | None]:
  """Fits a reranker on the evaluator's users; None where its gain is not sure.

  Also returns the metric that selects, of users that were not fitted on: two rerankers, each fitted
  on one half of the users, rank the other half. None where there are too few to fit on. value_U:
  the metric that selects, of every user, without a reranker.
  """
  examples = collect_examples(model, evaluator)
  half_N, half_U = examples.user_N % 2, np.arange(len(evaluator)) % 2
  if np.bincount(half_N, minlength=2).min() < FEWEST // 2:
    return None, None
  if model.evidence.unit_IW:
    # once more with new items, so that the reranker learns where they belong among known ones
    examples = examples.joined(collect_examples(with_some_new(model), evaluator))
    half_N = examples.user_N % 2
  unused = () if config.blend.network else NETWORK_FEATURES
  other_halves = []
  for half in (0, 1):
    reranked = model.with_reranker(fit_reranker(examples.take(half_N != half), unused))
    other_halves.append(selected_values(config, evaluator.model_ranks(reranked)))
  reranked_U = np.where(half_U == 0, *other_halves)
  kept = is_sure(reranked_U - value_U)
  return fit_reranker(examples, unused) if kept else None, float(reranked_U.mean())


BLEND = BlendStage()
