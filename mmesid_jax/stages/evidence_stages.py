"""Two baselines that count and compare instead of being trained: counts, and counts with content.

Each chooses its settings on validation items by the same search and writes one artifact, which
holds the tables and, in its header, the chosen settings, their metric, and how many were tried. A
refit takes the settings of the first run, and only makes the tables again.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from mmesid_jax.config.schema import FROM_EVENTS, modalities
from mmesid_jax.data.dataset import training_events
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.data.transitions import Transitions, count_transitions
from mmesid_jax.data.whitening import Whitening, fit_whitening
from mmesid_jax.display import reporter
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.evaluation.metrics import UNMASKED, user_values
from mmesid_jax.files import artifact
from mmesid_jax.files.artifact_form import find_wrong_setting
from mmesid_jax.files.digest import json_sha256
from mmesid_jax.models.evidence import (
  NEWEST,
  ContentSettings,
  CountSettings,
  EvidenceModel,
  EvidenceTables,
)
from mmesid_jax.stages.evidence_scores import SettingsRanks
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import Workdir

ROW_LENGTH = 1  # of the evaluation, which reads histories instead of rows
# Of each modality; the search starts at the first of each.
WIDTHS = (256, 128)  # whitened components
RECENCIES = (0.6, 0.8, 0.9)
WEIGHTS = (1.0, 0.5, 2.0, 3.0, 0.0)
SEARCH_USERS = 20_000  # validation users of the search, evenly spread
PASSES = 2  # over all settings, each tried while the others stay
# The trend of an item: its share of the events near the ends of the users' training parts.
TREND_DECAY = 0.8  # weight of an event, for each later event of its user
TREND_PRIOR = 0.1  # events that every item is given before shares are compared
NEVER_AGAIN = -100.0  # of `repeats`: other differences of scores are smaller
# A whitened row shorter than this share of the mean length is the mean but for rounding, as that of
# an item without text or image.
SHORTEST = 0.05

Settings = dict[str, Any]


def search_settings(
  options: Mapping[str, Sequence],
  score: Callable[[Sequence[Settings]], Sequence[np.ndarray]],
  label: str,
) -> tuple[Settings, float, int]:
  """Chooses one of the options of each setting: tries those of one setting while the others stay,
  PASSES times over all, beginning with the first option of each.

  A choice changes only for a gain of more than its standard error over users, because the best of
  many that are equal but for noise is worse than it looks.

  Args:
    options: the values of each setting.
    score: several settings -> a metric of every user, [U], for each of them.
    label: of the progress bar.

  Returns the settings, their mean score, and how many settings were tried.
  """
  chosen = {name: values[0] for name, values in options.items()}
  tried: dict[tuple, np.ndarray] = {}

  def try_settings(several: Sequence[Settings]) -> list[np.ndarray]:
    new = {key: s for s in several if (key := tuple(s.values())) not in tried}
    if new:
      tried.update(zip(new, score([*new.values()]), strict=True))
      bar.update(len(new))
    return [tried[tuple(s.values())] for s in several]

  most = 1 + PASSES * sum(len(values) - 1 for values in options.values())
  with reporter.progress(label=label, total=most, unit="settings") as bar:
    (best_U,) = try_settings([chosen])
    for name, values in list(options.items()) * PASSES:
      several = [{**chosen, name: value} for value in values]
      for settings, found_U in zip(several, try_settings(several), strict=True):
        gain_U = found_U - best_U
        if gain_U.mean() > gain_U.std() / len(gain_U) ** 0.5:
          best_U, chosen = found_U, settings
  return chosen, float(best_U.mean()), len(tried)


class CountsStage(Stage):
  """Counted transitions between items, popularity and its trend, repeats."""

  name = "counts"
  summary = "a baseline: how often which item followed which"
  config_keys = ("counts.", "evaluation.select")
  model_name = "counts"
  reads_features = False
  is_random = False
  narrow_histories = True

  # The search starts at the first of each, a good choice on Amazon Beauty.
  OPTIONS: ClassVar[Mapping[str, Sequence]] = {
    "window": (20, 10),
    "distance_decay": (0.5, 1.0),
    "recency": (0.5, 0.6, 0.8, 0.9),
    "tail": (0.0, 0.2),
    "tau": (1.0, 0.3, 3.0),
    "popularity": (-0.04, 0.0, 0.04),
    "trend": (0.0, 0.1, 0.2, 0.4),
    "repeats": (0.0, NEVER_AGAIN, -0.5, 0.5, 1.0),
  }

  def content_modalities(self, config: ConfigDict) -> list[str]:
    """The modalities whose content is compared."""
    return []

  def further_inputs(self, config: ConfigDict) -> dict[str, str]:
    options = self.OPTIONS, WIDTHS, RECENCIES, WEIGHTS
    numbers = PASSES, SEARCH_USERS, NEWEST, TREND_DECAY, TREND_PRIOR, SHORTEST
    return {"search": json_sha256([options, numbers])}

  def layout(self, config: ConfigDict) -> Layout:
    return Layout(1, ROW_LENGTH, config.evaluation.targets)

  def choice(self, workdir: Workdir) -> dict[str, Any]:
    return {"settings": self.read(workdir.path, workdir.config)[1]["settings"]}

  def find_wrong_choice(self, chosen: Mapping[str, Any], workdir: Workdir) -> str | None:
    return find_wrong_setting(chosen, self.content_modalities(workdir.config))

  def train(self, workdir: Workdir) -> None:
    dataset, followers = workdir.dataset, workdir.config.counts.followers
    item_E, user_E = events = training_events(dataset)
    share_I = item_shares(item_E, dataset.num_items)
    trend_I = item_trends(item_E, user_E, dataset.num_items)
    features = workdir.features(names=self.content_modalities(workdir.config))
    options = {**self.OPTIONS}
    for m, x_IV in features.items():
      options |= {
        f"{m}.width": width_options(x_IV.shape[1]),
        f"{m}.recency": RECENCIES,
        f"{m}.weight": WEIGHTS,
      }

    @functools.cache
    def count(window: int, decay: float) -> Transitions:
      sizes = {"window": window, "decay": decay, "followers": followers}
      return count_transitions(*events, dataset.num_items, **sizes)

    @functools.cache
    def whitening(m: str, width: int) -> Whitening:
      return fit_whitening(features[m], width, 1.0)

    @functools.cache
    def unit_vectors(m: str, width: int) -> np.ndarray:
      unit_IW = whitened_directions(features[m], whitening(m, width))
      unit_IW[0] = 0
      return unit_IW

    def tensors(settings: Settings) -> dict[str, np.ndarray]:
      table = count(settings["window"], settings["distance_decay"])
      arrays = {"follower": table.follower_IK, "count": table.count_IK}
      arrays |= {"share": share_I, "trend": trend_I}
      for m in features:
        width = settings[f"{m}.width"]
        arrays[f"unit.{m}"] = unit_vectors(m, width)
        arrays |= whitening(m, width).tensors(f"whitening.{m}.")
      return arrays

    if workdir.is_refit:
      chosen = self.chosen(workdir)["settings"]
      widths = {f"{m}.width": min(chosen[f"{m}.width"], x.shape[1]) for m, x in features.items()}
      chosen = {**chosen, **widths}
      kept = count(chosen["window"], chosen["distance_decay"]).kept
      self.write(workdir, tensors(chosen), None, settings=chosen, kept=kept)
      return

    evaluator = search_evaluator(workdir, self)
    ranks = SettingsRanks(evaluator, (share_I, trend_I), count, unit_vectors, tuple(features))

    def score(several: Sequence[Settings]) -> list[np.ndarray]:
      return [selected_values(workdir.config, of_one) for of_one in ranks(several)]

    chosen, best, tried = search_settings(options, score, f"{self.name}: settings")
    kept = count(chosen["window"], chosen["distance_decay"]).kept
    reporter.info(
      f"{self.name}: {tried} settings tried, best valid {selection_metric(workdir.config)} "
      f"(mean of masked and unmasked) {best:.4f} with {_as_text(chosen)}; "
      f"{followers} followers of each item hold {kept:.1%} of the counts"
    )
    self.write(workdir, tensors(chosen), None, valid=best, settings=chosen, tried=tried, kept=kept)

  def load_model(self, workdir: Workdir) -> EvidenceModel:
    found, header = self.read(workdir.path, workdir.config)
    return make_model(found, header["settings"])


class ContentStage(CountsStage):
  """The counts, with the similarity of an item's content to that of the history."""

  name = "content"
  summary = "a baseline: the counts, and items like those of the history"
  model_name = "counts + content"
  reads_features = True

  def content_modalities(self, config: ConfigDict) -> list[str]:
    return [m for m in modalities(config) if m != FROM_EVENTS]

  def applies(self, config: ConfigDict) -> bool:
    return bool(self.content_modalities(config))


def width_options(V: int) -> tuple[int, ...]:
  """Numbers of whitened components to choose from, of a table with V columns."""
  return tuple(dict.fromkeys(min(width, V) for width in WIDTHS))


def make_model(tensors: Mapping[str, np.ndarray], settings: Settings) -> EvidenceModel:
  """The model of tensors as an artifact holds them."""

  def numbers(kind: type, prefix: str = ""):
    return kind(**{name: settings[prefix + name] for name in kind._fields})

  tables = EvidenceTables(*(tensors[name] for name in ("follower", "count", "share", "trend")))
  model = EvidenceModel(tables, numbers(CountSettings))
  unit_IW = artifact.strip_prefix(tensors, "unit.")
  return model.with_content(unit_IW, {m: numbers(ContentSettings, f"{m}.") for m in unit_IW})


def item_shares(item_E: np.ndarray, num_items: int) -> np.ndarray:
  """Share of every item in the events, each counted once more, float32 [I]."""
  counts_I = np.bincount(item_E, minlength=num_items + 1) + 1.0
  return (counts_I / (counts_I.sum() - 1)).astype(np.float32)  # without the padding's


def item_trends(item_E: np.ndarray, user_E: np.ndarray, num_items: int) -> np.ndarray:
  """log of (an item's share of the events near the ends of the users' parts) / (its share of all),
  float32 [I]; 0 for items without events. What sold long ago may no longer be there, and what is
  new sells next. item_E, user_E: the events, as `training_events` returns them."""
  events_U = np.bincount(user_E)
  place_E = np.arange(len(item_E)) - np.repeat(np.cumsum(events_U) - events_U, events_U)
  weight_E = TREND_DECAY ** (events_U[user_E] - 1 - place_E)
  rows = num_items + 1
  late_I = np.bincount(item_E, weight_E, minlength=rows)
  expected_I = np.bincount(item_E, minlength=rows) * (weight_E.mean() if len(item_E) else 0)
  return np.log((late_I + TREND_PRIOR) / (expected_I + TREND_PRIOR)).astype(np.float32)


def whitened_directions(x_EV: np.ndarray, by: Whitening) -> np.ndarray:
  """Unit vectors float32 [E, W] of the whitened rows; zeros where a row is the mean."""
  x_EW = by(x_EV)
  length_E1 = np.linalg.norm(x_EW, axis=1, keepdims=True)
  # The mean length of training rows is near the root of the number of directions that vary.
  shortest = SHORTEST * np.count_nonzero(by.map_VW.any(0)) ** 0.5
  return np.where(length_E1 > shortest, x_EW / np.maximum(length_E1, 1e-12), 0)


def search_evaluator(workdir: Workdir, stage: Stage) -> Evaluator:
  """The batches of the validation users, at most SEARCH_USERS of them."""
  layout = evaluation_layout(stage.layout(workdir.config), workdir.config.evaluation.targets)
  options = {"most_users": SEARCH_USERS, "narrow": stage.narrow_histories}
  return Evaluator(workdir.dataset, layout, "valid", **options)


def selected_values(config: ConfigDict, ranks: Mapping[str, np.ndarray]) -> np.ndarray:
  """The metric that selects, of every user, [U], from ranks by protocol.

  It is the mean of both protocols, because one model is ranked by both.
  """
  cutoffs, metric = config.evaluation.cutoffs, selection_metric(config)
  return np.mean([user_values(rank_U, cutoffs)[metric] for rank_U in ranks.values()], axis=0)


def selection_metric(config: ConfigDict) -> str:
  """The metric that selects, without its protocol."""
  return config.evaluation.select.removeprefix(UNMASKED)


def _as_text(settings: Settings) -> str:
  return ", ".join(f"{name} {value}" for name, value in settings.items())


COUNTS, CONTENT = CountsStage(), ContentStage()
