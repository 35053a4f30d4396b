"""Semantic-ID stage: MM-RQ-VAE over all items, then every item's codes.

Writes semantic_ids.safetensors: `codes.<modality>` int32 [I + 1, L] (row 0 zero),
`codebooks.<modality>` float32 [L, C, D] and `means.<modality>` float32 [V], of the items' vectors;
the header holds the health of the codebooks.
"""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax import artifacts
from mmesid_jax.data.loader import item_batches
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.codebooks import health, table
from mmesid_jax.models import flops, mm_rqvae
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.models.state import loaded
from mmesid_jax.models.variables import Frozen
from mmesid_jax.quantize.kmeans import residual_kmeans
from mmesid_jax.stages.workdir import Workdir, key_for
from mmesid_jax.training import optimizer
from mmesid_jax.training.loop import Task
from mmesid_jax.training.throughput import Amounts

STAGE = "semantic_ids"
CHUNK = 4096  # items encoded at once


class Tables(nnx.Module):
  """The model and the feature tables that its batches of item ids read, on the device."""

  def __init__(self, model: MMRQVAE, features: Mapping[str, np.ndarray]):
    self.model = model
    self.feature_IV = nnx.Dict({m: Frozen(jnp.asarray(x)) for m, x in features.items()})

  def features(self, item_B: jax.Array) -> dict[str, jax.Array]:
    return {m: table_IV[...][item_B] for m, table_IV in self.feature_IV.items()}


def drawn(config: ConfigDict, widths: Mapping[str, int], *, code_width: int, seed: int) -> MMRQVAE:
  """Freshly drawn autoencoders and codebooks; widths: modality -> V."""
  return MMRQVAE(
    widths,
    hidden=config.hidden,
    D=code_width,
    levels=config.quantizer.levels,
    codes=config.quantizer.codes,
    commitment=config.quantizer.commitment,
    rngs=nnx.Rngs(key_for(seed, STAGE)),
  )


def build(
  config: ConfigDict, features: Mapping[str, np.ndarray], *, code_width: int, seed: int
) -> Tables:
  """Freshly drawn autoencoders whose codebooks start from k-means through the untrained
  encoders."""
  widths = {m: x.shape[1] for m, x in features.items()}
  model = drawn(config, widths, code_width=code_width, seed=seed)
  tables = Tables(model, features)
  start = config.quantizer.start
  if start != "random":
    for m, part in model.by_modality.items():
      z_ND = np.concatenate([part.encoder(x) for x in _chunks(jnp.asarray(features[m][1:]))])
      part.quantizer.codebook_LCD[...] = jnp.asarray(
        residual_kmeans(
          z_ND,
          config.quantizer.levels,
          config.quantizer.codes,
          balanced=start == "balanced",
          seed=seed,
        )
      )
  return tables


def _chunks(x: jax.Array) -> list[jax.Array]:
  return [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]


def loss_options(config: ConfigDict) -> dict:
  """The keys of `config` = config.semantic_ids that mm_rqvae.loss takes."""
  names = (
    "reconstruction",
    "alignment",
    "temperature",
    "reconstruction_weight",
    "quantisation_weight",
    "alignment_weight",
  )
  sinkhorn = {n: config.quantizer[n] for n in ("sinkhorn_epsilon", "sinkhorn_iterations")}
  return {name: config[name] for name in names} | sinkhorn


@nnx.jit
def _encode(tables: Tables, item_B: jax.Array) -> dict[str, jax.Array]:
  return {m: tables.model.encode(m, x_BV) for m, x_BV in tables.features(item_B).items()}


def all_codes(tables: Tables, num_items: int) -> dict[str, np.ndarray]:
  """modality -> int32 [I + 1, L] by the nearest code; row 0 is zero."""
  found = [_encode(tables, item_B) for item_B in _chunks(jnp.arange(1, num_items + 1))]
  return {
    m: np.concatenate([np.zeros_like(found[0][m][:1]), *(part[m] for part in found)])
    for m in found[0]
  }


def run(workdir: Workdir) -> None:
  """Trains, keeps the parameters of the lowest loss over all items, writes the artifact."""
  config, num_items = workdir.config, workdir.dataset.num_items
  c = config.semantic_ids
  batch = min(c.batch, num_items)
  steps_an_epoch = -(-num_items // batch)
  steps = steps_an_epoch * c.epochs
  options = loss_options(c)
  fixed = np.resize(
    np.random.default_rng(config.seed).permutation(num_items) + 1, (steps_an_epoch, batch)
  )

  @nnx.jit
  def whole_loss(tables: Tables, item_B: jax.Array) -> jax.Array:
    return mm_rqvae.loss(tables.model, tables.features(item_B), **options)[0]

  def validate(tables: Tables) -> dict[str, float]:
    report = health({m: x[1:] for m, x in all_codes(tables, num_items).items()}, c.quantizer.codes)
    metrics = {"negative_loss": -float(np.mean([whole_loss(tables, items) for items in fixed]))}
    for m, found in report.items():
      metrics[f"{m}/collision_rate"] = found["collision_rate"]
      for level, of_level in enumerate(found.get("levels", []), 1):
        metrics |= {f"{m}/level{level}/{name}": value for name, value in of_level.items()}
    return metrics

  def step_loss(tables: Tables, item_B: jax.Array, key: jax.Array):
    del key  # nothing is drawn while it trains
    value, parts = mm_rqvae.loss(tables.model, tables.features(item_B), **options)
    return (value, jnp.ones(())), parts  # a loss of pairs of items is no sum over items

  features = workdir.features()
  tables = build(c, features, code_width=config.recommender.width, seed=config.seed)
  task = Task(
    name=STAGE,
    model=tables,
    loss=step_loss,
    batches=item_batches(num_items, batch, seed=config.seed),
    steps=steps,
    validate_every=steps_an_epoch * c.validate_every_epochs,
    optimizer=optimizer.adamw(c.optimizer, steps),
    schedule=optimizer.schedule(c.optimizer, steps),
    validate=validate,
    select="negative_loss",
    unit="items",
    amounts=lambda items: Amounts(len(items), flops.mm_rqvae(tables.model, len(items))),
    blame=lambda items: f"items {sorted(items.tolist())[:20]}",
    seed=config.seed,
  )
  result = workdir.fit(task)
  codes = all_codes(result.model, num_items)
  report = health({m: x[1:] for m, x in codes.items()}, c.quantizer.codes)
  print(table(report))
  books = {
    m: part.quantizer.codebook_LCD[...] for m, part in result.model.model.by_modality.items()
  }
  workdir.write(
    STAGE,
    {f"codes.{m}": x for m, x in codes.items()}
    | {f"codebooks.{m}": np.asarray(x) for m, x in books.items()}
    | {f"means.{m}": x[1:].mean(0) for m, x in features.items()},
    result.model.model,
    best_step=result.best_step,
    health=report,
  )


def restore(
  workdir_path: pathlib.Path, config: ConfigDict
) -> tuple[MMRQVAE, dict[str, np.ndarray], str]:
  """The trained model, the means of its items' vectors by modality, and the artifact's fingerprint,
  from workdir_path/semantic_ids.safetensors alone."""
  path = workdir_path / f"{STAGE}.safetensors"
  found, header = artifacts.read_artifact(path, STAGE)
  means = {k.removeprefix("means."): x for k, x in found.items() if k.startswith("means.")}
  if not means:
    raise UserError(f"{path}: holds no means of the items' vectors; train the stage {STAGE} again")
  model = loaded(
    lambda: drawn(
      config.semantic_ids,
      {m: len(x) for m, x in means.items()},
      code_width=config.recommender.width,
      seed=config.seed,
    ),
    {k.removeprefix("model."): x for k, x in found.items() if k.startswith("model.")},
    str(path),
  )
  return model, means, header["fingerprint"]
