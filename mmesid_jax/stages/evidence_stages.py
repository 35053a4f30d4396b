"""Two baselines that count and compare instead of being trained: counts, and counts with content.

Each chooses its settings on validation items by the same search and writes one artifact, which
holds the tables and, in its header, the chosen settings, their metric, and how many were tried.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from mmesid_jax.config.schema import FROM_EVENTS, modalities
from mmesid_jax.data.dataset import Dataset, popularity, training_events
from mmesid_jax.data.row_layout import Layout
from mmesid_jax.data.transitions import Transitions, count_transitions
from mmesid_jax.data.whitening import fit_whitening, whiten
from mmesid_jax.display import reporter
from mmesid_jax.evaluation.evaluator import Evaluator
from mmesid_jax.evaluation.metrics import UNMASKED, user_values
from mmesid_jax.files import artifact
from mmesid_jax.models.evidence import ContentSettings, CountSettings, EvidenceModel
from mmesid_jax.stages.evidence_scores import SettingsRanks
from mmesid_jax.stages.sequence_task import evaluation_layout
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import Workdir

HISTORY = 50  # newest items that are evidence
ROW_LENGTH = 128  # of the evaluation; at least HISTORY
# Of each modality; the search starts at the first of each.
WIDTHS = (256, 128)  # whitened components
RECENCIES = (0.6, 0.8, 0.9)
WEIGHTS = (1.0, 0.5, 2.0, 3.0, 0.0)
SEARCH_USERS = 20_000  # validation users of the search, evenly spread
PASSES = 2  # over all settings, each tried while the others stay

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
  """Counted transitions between items, and popularity."""

  name = "counts"
  summary = "a baseline: how often which item followed which"
  config_keys = ("counts.", "evaluation.select")
  model_name = "counts"
  reads_features = False
  is_random = False

  # The search starts at the first of each, a good choice on Amazon Beauty.
  OPTIONS: ClassVar[Mapping[str, Sequence]] = {
    "window": (20, 10),
    "distance_decay": (0.5, 1.0),
    "recency": (0.5, 0.6, 0.8, 0.9),
    "tail": (0.0, 0.2),
    "tau": (1.0, 0.3, 3.0),
    "popularity": (-0.04, 0.0, 0.04),
  }

  def content_modalities(self, config: ConfigDict) -> list[str]:
    """The modalities whose content is compared."""
    return []

  def layout(self, config: ConfigDict) -> Layout:
    return Layout(1, ROW_LENGTH, config.evaluation.targets, history=HISTORY)

  def train(self, workdir: Workdir) -> None:
    dataset, followers = workdir.dataset, workdir.config.counts.followers
    share_I, events = item_shares(dataset), training_events(dataset)
    features = workdir.features(names=self.content_modalities(workdir.config))
    options = {**self.OPTIONS}
    for m, x_IV in features.items():
      widths = tuple(dict.fromkeys(min(width, x_IV.shape[1]) for width in WIDTHS))
      options |= {f"{m}.width": widths, f"{m}.recency": RECENCIES, f"{m}.weight": WEIGHTS}

    @functools.cache
    def count(window: int, decay: float) -> Transitions:
      sizes = {"window": window, "decay": decay, "followers": followers}
      return count_transitions(*events, dataset.num_items, **sizes)

    @functools.cache
    def unit_vectors(m: str, width: int) -> np.ndarray:
      return whitened_directions(features[m], width)

    def tensors(settings: Settings) -> dict[str, np.ndarray]:
      table = count(settings["window"], settings["distance_decay"])
      unit = {f"unit.{m}": unit_vectors(m, settings[f"{m}.width"]) for m in features}
      return {"follower": table.follower_IK, "count": table.count_IK, "share": share_I, **unit}

    evaluator = _search_evaluator(workdir, self)
    ranks = SettingsRanks(evaluator, share_I, count, unit_vectors, tuple(features))

    def score(several: Sequence[Settings]) -> list[np.ndarray]:
      return [_metric_values(workdir.config, of_one) for of_one in ranks(several)]

    chosen, best, tried = search_settings(options, score, f"{self.name}: settings")
    kept = count(chosen["window"], chosen["distance_decay"]).kept
    reporter.info(
      f"{self.name}: {tried} settings tried, best valid {_metric(workdir.config)} "
      f"(mean of masked and unmasked) {best:.4f} with {_as_text(chosen)}; "
      f"{followers} followers of each item hold {kept:.1%} of the counts"
    )
    self.write(workdir, tensors(chosen), None, valid=best, settings=chosen, tried=tried, kept=kept)

  def load_model(self, workdir: Workdir) -> EvidenceModel:
    found, header = self.read(workdir.path)
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


def make_model(tensors: Mapping[str, np.ndarray], settings: Settings) -> EvidenceModel:
  """The model of tensors as an artifact holds them."""

  def numbers(kind: type, prefix: str = ""):
    return kind(**{name: settings[prefix + name] for name in kind._fields})

  follower_IK, count_IK, share_I = (tensors[name] for name in ("follower", "count", "share"))
  model = EvidenceModel(follower_IK, count_IK, share_I, numbers(CountSettings))
  unit_IW = artifact.strip_prefix(tensors, "unit.")
  return model.with_content(unit_IW, {m: numbers(ContentSettings, f"{m}.") for m in unit_IW})


def item_shares(dataset: Dataset) -> np.ndarray:
  """Share of every item in the training parts, each counted once more, float32 [I]."""
  counts_I = popularity(dataset) + 1.0
  return (counts_I / (counts_I.sum() - 1)).astype(np.float32)  # without the padding's


def whitened_directions(x_IV: np.ndarray, width: int) -> np.ndarray:
  """Unit vectors float32 [I, width] of the whitened rows; zeros where a row is the mean."""
  x_IW = whiten(x_IV, fit_whitening(x_IV, width, 1.0))
  return x_IW / np.maximum(np.linalg.norm(x_IW, axis=1, keepdims=True), 1e-12)


def _search_evaluator(workdir: Workdir, stage: Stage) -> Evaluator:
  """The batches of the validation users, at most SEARCH_USERS of them."""
  layout = evaluation_layout(stage.layout(workdir.config), workdir.config.evaluation.targets)
  return Evaluator(workdir.dataset, layout, "valid", most_users=SEARCH_USERS)


def _metric_values(config: ConfigDict, ranks: Mapping[str, np.ndarray]) -> np.ndarray:
  """The metric that selects, of every user, [U], from ranks by protocol.

  It is the mean of both protocols, because one model is ranked by both.
  """
  cutoffs, metric = config.evaluation.cutoffs, _metric(config)
  return np.mean([user_values(rank_U, cutoffs)[metric] for rank_U in ranks.values()], axis=0)


def _metric(config: ConfigDict) -> str:
  return config.evaluation.select.removeprefix(UNMASKED)


def _as_text(settings: Settings) -> str:
  return ", ".join(f"{name} {value}" for name, value in settings.items())


COUNTS, CONTENT = CountsStage(), ContentStage()
