"""Ablations: every variant of a base configuration with every seed, and a table of the results.

Each run has a workdir, WORKDIR/<variant>-seed<k>; stages with equal fingerprints are trained once.
Its figures go to RESULTS/<variant>-seed<k>.json; the table is made from these files alone.
"""

import contextlib
import dataclasses
import pathlib
import time
import traceback
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from mmesid_jax import pipeline
from mmesid_jax.config.command_line import nearest_name
from mmesid_jax.config.saved import identity
from mmesid_jax.config.schema import apply_preset, default_config, flatten
from mmesid_jax.display import reporter
from mmesid_jax.errors import Interrupted, Stop, UserError
from mmesid_jax.experiments import ablation_table
from mmesid_jax.files import artifact
from mmesid_jax.files.atomic import refuse_linked_folders
from mmesid_jax.files.provenance import check_same_settings
from mmesid_jax.files.readers import read_json_object
from mmesid_jax.reports.test_ranks import Ranks, read_ranks, summed_ranks, write_ranks
from mmesid_jax.stages.collaborative_stage import COLLABORATIVE
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.registry import MODELS
from mmesid_jax.stages.semantic_id_stage import SEMANTIC_IDS
from mmesid_jax.stages.workdir import Workdir, check_workdir, open_workdir, set_compilation_cache

BASE = "base"  # the variant that all are compared with
MODEL = RECOMMENDER.model_name  # that is ranked where config.model does not name another
BESIDE_BASE = {"popularity": "popularity", "sasrec": COLLABORATIVE.model_name}  # row -> model
SUMMABLE = (COLLABORATIVE.name, RECOMMENDER.name)  # whose scores are products of vectors
SPLITS = ("test", "valid")
NEXT = "next "  # before a part of a sum: the model of the next seed


def run_ablations(
  config: ConfigDict,
  workdir: pathlib.Path,
  results: pathlib.Path,
  *,
  variants: Sequence[str] | None,
  seeds: Sequence[str] | None,
) -> None:
  """Trains the chosen variants with the chosen seeds, None = all; prints the table after each run.

  Seeds are the outer loop, so that early results cover all variants. A run that fails is reported
  in a line and the next one starts. Raises UserError, before anything trains, for an unknown
  variant or seed; Interrupted as `pipeline.run_pipeline` does; Stop at the end if runs failed.
  """
  _check_kinds(config)
  chosen = [BASE, *_choose(variants, _names(config), "--variants")]
  plan = AblationPlan(config, workdir, results)
  models = [name for name in _names(config) if name in chosen and name not in config.sums]
  sums = [name for name in config.sums if name in chosen]
  numbers = [int(s) for s in _choose(seeds, [*map(str, config.seeds)], "--seeds")]
  plan.check(models, sums, numbers)
  ablation_table.check_table(results)
  set_compilation_cache(config.base)
  failed: dict[str, str] = {}

  def attempt(work, name: str, seed: int) -> None:
    label = f"{name}-seed{seed}"
    reporter.info(f"\n{label}")
    try:
      work(name, seed)
    except Interrupted:
      raise
    except Exception as error:
      if not isinstance(error, Stop):
        traceback.print_exc()
      failed[label] = " ".join(str(error).split()) or type(error).__name__
      reporter.warn(f"{label} failed: {failed[label]}")
    _print_table(config, results)

  for seed in numbers:
    for name in models:
      if not plan.is_finished(name, seed):
        attempt(plan.train, name, seed)
    for other in numbers:
      for name in sums:
        if plan.can_add_up(name, other) and not plan.is_finished(name, other):
          attempt(plan.add_up, name, other)
  _print_table(config, results)
  if failed:
    labels = "; ".join(f"{label} ({message})" for label, message in failed.items())
    raise Stop(f"{len(failed)} of the runs failed; the same command tries them again: {labels}")


def print_table(config: ConfigDict, results: pathlib.Path) -> None:
  """Prints the table of a folder of results, with the runs that it still lacks, and writes it to
  table.md there. Raises UserError for a folder without results."""
  _check_kinds(config)
  if not any(results.glob("*.json")):
    raise UserError(f"--results={results}: holds no result of mmesid_jax.ablate")
  _print_table(config, results)


def _print_table(config: ConfigDict, results: pathlib.Path) -> None:
  found = ablation_table.read_results(results)
  names = _names(config)
  owed = [
    f"seed {seed}: {', '.join(missing)}"
    for seed in config.seeds
    if (missing := [name for name in names if seed not in found.get(name, {})])
  ]
  text = "\n\n".join(
    [ablation_table.ablation_tables(found, [*BESIDE_BASE, *names]), _legend(found, owed)]
  )
  ablation_table.write_table(results, text)
  reporter.info(f"\n{text}")


def _legend(found, owed: list[str]) -> str:
  runs = [result for seeds in found.values() for result in seeds.values()]
  revisions = ", ".join(sorted({str(result["git"])[:7] for result in runs}))
  return (
    "Mean over seeds (each seed). To base: the difference to base with the same seed and users, "
    "and its 95 % interval: with several seeds for other seeds and other users, from two crossed "
    f"random effects, the seeds and {ablation_table.GROUPS} groups of users; with one seed for "
    "other users alone, by bootstrap.\n\n"
    f"Revision: {revisions or 'none'}. Runs still owed: {'; '.join(owed) or 'none'}."
  )


def _check_kinds(config: ConfigDict) -> None:
  """Raises UserError for seeds that are no numbers, and a variant or sum of another kind."""
  seeds = config.seeds
  if not isinstance(seeds, tuple | list) or not seeds or any(type(s) is not int for s in seeds):
    raise UserError(f"--config.seeds={seeds!r}: expected whole numbers, as (0, 1, 2)")
  for key, kind, text in (("variants", ConfigDict, "a section"), ("sums", tuple | list, "a tuple")):
    for name, value in config[key].items():
      if not isinstance(value, kind):
        raise UserError(f"--config.{key}.{name}={value!r}: expected {text}")


def _names(config: ConfigDict) -> list[str]:
  """Base, the other variants, the sums; in alphabetical order each, as ConfigDict keeps them."""
  return [BASE, *(name for name in config.variants if name != BASE), *config.sums]


def _choose(asked: Sequence[str] | None, known: Sequence[str], flag: str) -> list[str]:
  for name in asked or ():
    if name not in known:
      raise UserError(f"{flag}={name}: unknown; did you mean {nearest_name(name, known)}?")
  return [name for name in known if asked is None or name in asked]


@dataclasses.dataclass(frozen=True)
class AblationPlan:
  """The runs of a configuration: their configurations, folders and results."""

  config: ConfigDict
  workdir: pathlib.Path
  results: pathlib.Path

  @property
  def model(self) -> str:
    """The row of a run's results that is compared, as the evaluation names it."""
    return self.config.get("model", MODEL)

  def folder(self, name: str, seed: int) -> pathlib.Path:
    return self.workdir / f"{name}-seed{seed}"

  def file(self, name: str, seed: int) -> pathlib.Path:
    return self.results / f"{name}-seed{seed}.json"

  def changes(self, name: str) -> dict:
    """The changes of a variant, by flat key; for a sum, its parts."""
    if name in self.config.sums:
      return {"sum": list(self.config.sums[name])}
    return flatten(self.config.variants[name])

  def config_of(self, name: str, seed: int) -> ConfigDict:
    """The base configuration with the variant's preset, then its other changes. Raises
    UserError."""
    config = ConfigDict(self.config.base.to_dict())
    keys = flatten(config)
    changes = self.changes(name)
    for key in changes:
      if key not in keys:
        raise UserError(
          f"variant {name}: {key}: no such key; did you mean {nearest_name(key, [*keys])}?"
        )
    if preset := changes.get("preset"):
      apply_preset(config, preset)
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    try:
      config.update_from_flattened_dict({**tuples, "seed": seed})
    except (TypeError, ValueError) as error:
      raise UserError(f"variant {name}: {error}") from error
    return config

  def check(self, models: Sequence[str], sums: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises UserError for a variant that cannot run, or a result of another configuration."""
    if BASE not in self.config.variants or self.changes(BASE):
      raise UserError(f"--config.variants: wants one named {BASE} that changes nothing")
    trained = [s.model_name for name, s in MODELS.items() if name in self.config.base.stages]
    if self.model not in trained:
      raise UserError(
        f"--config.model={self.model}: expected one that base trains: {', '.join(trained)}"
      )
    for name in models:
      try:
        pipeline.check_config(self.config_of(name, seeds[0]))
      except UserError as error:
        where = "" if name == BASE else f"variant {name}: "
        raise UserError(where + str(error).replace("--config.", "--config.base.")) from error
    generates = self.config_of(BASE, seeds[0]).recommender.head == "generate"
    for name in sums:
      for part in self.config.sums[name]:
        if part.removeprefix(NEXT) not in SUMMABLE:
          raise UserError(f"--config.sums.{name}: {part!r} is none of {', '.join(SUMMABLE)}")
        if generates and part.removeprefix(NEXT) == RECOMMENDER.name:
          raise UserError(
            f"--config.sums.{name}: with recommender.head=generate, {part!r} gives no scores of "
            "all items; take head=both"
          )
    for seed in seeds:
      for name in models:
        check_workdir(self.folder(name, seed))
      for name in (*models, *sums):
        self.is_finished(name, seed)

  def is_finished(self, name: str, seed: int) -> bool:
    """Whether the result is there and compared with base; for base, whether its ranks are there to
    compare with. Raises UserError for a result of another configuration."""
    file = self.file(name, seed)
    if not file.is_file():
      return False
    result = ablation_table.read_result(file)
    old, new = {**result["config"], **result["changes"]}, self._settings(name, seed)
    check_same_settings(
      old,
      new,
      label=f"{file}: of another experiment",
      remedy="name another --results, or delete the file",
      missing="the default",
    )
    return self.reference(seed) is not None if name == BASE else result["to_base"] is not None

  def _settings(self, name: str, seed: int) -> dict:
    """The keys of the run that are not at their default, and those that the variant changes."""
    return {**self._departures(name, seed), **self.changes(name)}

  def _departures(self, name: str, seed: int) -> dict:
    default = identity(default_config())
    own = identity(self.config_of(BASE if name in self.config.sums else name, seed))
    if self.model != MODEL:
      own["model"] = self.model
    return {k: v for k, v in own.items() if k not in default or v != default[k]}

  def train(self, name: str, seed: int) -> None:
    """Trains a run and writes its result; for base, those of the other models of its workdir
    too."""
    folder = self.folder(name, seed)
    others = sorted(path for path in self.workdir.glob("*-seed*") if path != folder)
    with self._timed(folder):
      workdir = pipeline.run_pipeline(self.config_of(name, seed), folder, others=others)
      pipeline.report_ranks(workdir, "valid")
    codes = None
    if SEMANTIC_IDS in RECOMMENDER.upstream(workdir.config):
      header = artifact.read_header(workdir.artifact("semantic_ids"), "semantic_ids")
      codes = {
        modality: {
          "collisions": round(found["collision_rate"], 5),
          "usage": [round(level["usage"], 4) for level in found.get("levels", [])],
        }
        for modality, found in header["health"].items()
      }
    self._write(name, seed, workdir, {s: read_ranks(folder, s, self.model) for s in SPLITS}, codes)
    for row, model in BESIDE_BASE.items() if name == BASE else ():
      if model == "popularity" or workdir.artifact("collaborative").exists():
        self._write(row, seed, workdir, {s: read_ranks(folder, s, model) for s in SPLITS})

  def can_add_up(self, name: str, seed: int) -> bool:
    """Whether the models of this sum are trained, and at least two are different."""
    parts = self._parts(name, seed)
    exist = (self.folder(BASE, s) / f"{stage}.safetensors" for s, stage in parts)
    return len(set(parts)) > 1 and all(path.is_file() for path in exist)

  def _parts(self, name: str, seed: int) -> list[tuple[int, str]]:
    seeds = list(self.config.seeds)
    next_seed = seeds[(seeds.index(seed) + 1) % len(seeds)]
    return [
      (next_seed if part.startswith(NEXT) else seed, part.removeprefix(NEXT))
      for part in self.config.sums[name]
    ]

  def add_up(self, name: str, seed: int) -> None:
    """Ranks by the sum of the scores of trained models, and writes the result."""
    folder = self.folder(name, seed)
    with self._timed(folder):
      parts = [
        (open_workdir(self._resolved(s), self.folder(BASE, s)), stage)
        for s, stage in self._parts(name, seed)
      ]
      ranks = {split: summed_ranks(parts, split) for split in SPLITS}
    for split, found in ranks.items():
      write_ranks(folder, split, name, found)
    self._write(name, seed, parts[0][0], ranks)

  def _resolved(self, seed: int) -> ConfigDict:
    config = self.config_of(BASE, seed)
    pipeline.check_config(config)
    return config

  def reference(self, seed: int) -> Ranks | None:
    """The test ranks of base; None where there are none yet."""
    try:
      return read_ranks(self.folder(BASE, seed), "test", self.model)
    except UserError:
      return None

  def _write(self, name: str, seed: int, workdir: Workdir, ranks, codes=None) -> None:
    """Writes the result. ranks: by split. workdir: that of the models."""
    environment = read_json_object(workdir.path / "environment.json")
    reference = self.reference(seed)
    options = {"resamples": workdir.config.evaluation.resamples, "seed": seed}
    beside = name in BESIDE_BASE
    seconds = self.folder(name, seed) / "seconds"
    result = {
      "variant": name,
      "seed": seed,
      "changes": {} if beside else self.changes(name),
      "config": self._departures(BASE if beside else name, seed),
      "dataset": workdir.dataset.fingerprint,
      "users": len(ranks["test"]["masked"]),
      "git": environment["git"],
      "python": environment["python"],
      "versions": environment["versions"],
      "devices": environment["devices"],
      "seconds": None if beside else _read_seconds(seconds),
      **{split: ablation_table.summarize_metrics(ranks[split], **options) for split in SPLITS},
      "codes": codes,
      "to_base": {}
      if name == BASE
      else reference and ablation_table.gains_over_base(ranks["test"], reference),
    }
    ablation_table.write_result(self.file(name, seed), result)

  @contextlib.contextmanager
  def _timed(self, folder: pathlib.Path) -> Iterator[None]:
    """Adds the seconds of the block to folder/seconds, also when it is interrupted."""
    refuse_linked_folders(folder.parent, [folder.name])
    start, file = time.perf_counter(), folder / "seconds"
    try:
      yield
    finally:
      artifact.write_text(file, f"{_read_seconds(file) + time.perf_counter() - start:.1f}\n")


def _read_seconds(file: pathlib.Path) -> float:
  """The seconds that `_timed` counted so far; 0 for a file that is missing or damaged."""
  try:
    return float(file.read_text()) if file.is_file() else 0.0
  except ValueError:
    return 0.0
