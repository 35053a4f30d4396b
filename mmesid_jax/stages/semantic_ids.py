"""Semantic-ID stage: MM-RQ-VAE over all items, then every item's codes.

Writes semantic_ids.safetensors: `codes.<modality>` int32 [I + 1, L] (row 0 zero) and
`codebooks.<modality>` float32 [L, C, D]; the header holds the health of the codebooks.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.loader import item_batches
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.codebooks import health, table
from mmesid_jax.models import flops, mm_rqvae
from mmesid_jax.models.mm_rqvae import MMRQVAE
from mmesid_jax.quantize.kmeans import residual_kmeans
from mmesid_jax.stages.tables import Batch, Tables, batch_of, chunks, encoded, items_of
from mmesid_jax.stages.workdir import Workdir, key_for
from mmesid_jax.training import optimizer
from mmesid_jax.training.loop import Task
from mmesid_jax.training.throughput import Amounts

STAGE = "semantic_ids"


def check(config: ConfigDict, num_items: int) -> None:
  """Raises UserError where config.semantic_ids = config asks for more codes than there are
  items."""
  if config.quantizer.codes > num_items:
    raise UserError(
      f"--config.semantic_ids.quantizer.codes={config.quantizer.codes}: more than the {num_items} "
      "items of the data set, so most would stand for nothing"
    )


def build(
  config: ConfigDict, features: Mapping[str, np.ndarray], *, code_width: int, seed: int
) -> Tables:
  """Freshly drawn autoencoders whose codebooks start from k-means through the untrained
  encoders."""
  rngs = nnx.Rngs(key_for(seed, STAGE))
  model = MMRQVAE(
    {m: x.shape[1] for m, x in features.items()},
    hidden=config.hidden,
    D=code_width,
    levels=config.quantizer.levels,
    codes=config.quantizer.codes,
    commitment=config.quantizer.commitment,
    rngs=rngs,
  )
  tables = Tables(model, features)
  start = config.quantizer.start
  if start != "random":
    for m, part in model.by_modality.items():
      part.quantizer.codebook_LCD[...] = jnp.asarray(
        residual_kmeans(
          encoded(part.encoder, features[m], code_width),
          config.quantizer.levels,
          config.quantizer.codes,
          balanced=start == "balanced",
          seed=seed,
          overwrite=True,
        )
      )
  return tables


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
def _encode(tables: Tables, batch: Batch) -> dict[str, jax.Array]:
  return {m: tables.model.encode(m, x_BV) for m, x_BV in tables.features(batch).items()}


def all_codes(tables: Tables, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """modality -> int32 [I + 1, L] by the nearest code; row 0 is zero."""
  num_items = len(next(iter(features.values()))) - 1
  batches = (batch_of(features, np.arange(r.start, r.stop)) for r in chunks(num_items))
  found = [jax.device_get(_encode(tables, batch)) for batch in batches]
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
  features = workdir.features(mapped=True)
  fixed = np.resize(
    np.random.default_rng(config.seed).permutation(num_items) + 1, (steps_an_epoch, batch)
  )

  @nnx.jit
  def whole_loss(tables: Tables, batch: Batch) -> jax.Array:
    return mm_rqvae.loss(tables.model, tables.features(batch), **options)[0]

  def validate(tables: Tables) -> dict[str, float]:
    report = health({m: x[1:] for m, x in all_codes(tables, features).items()}, c.quantizer.codes)
    losses = [whole_loss(tables, batch_of(features, items)) for items in fixed]
    metrics = {"negative_loss": -float(np.mean(losses))}
    for m, found in report.items():
      metrics[f"{m}/collision_rate"] = found["collision_rate"]
      for level, of_level in enumerate(found.get("levels", []), 1):
        metrics |= {f"{m}/level{level}/{name}": value for name, value in of_level.items()}
    return metrics

  def step_loss(tables: Tables, batch: Batch, key: jax.Array):
    del key  # nothing is drawn while it trains
    value, parts = mm_rqvae.loss(tables.model, tables.features(batch), **options)
    return (value, jnp.ones(())), parts  # a loss of pairs of items is no sum over items

  tables = build(c, features, code_width=config.recommender.width, seed=config.seed)
  task = Task(
    name=STAGE,
    model=tables,
    loss=step_loss,
    batches=item_batches(num_items, batch, seed=config.seed).map(
      lambda item_B: batch_of(features, item_B)
    ),
    steps=steps,
    validate_every=steps_an_epoch * c.validate_every_epochs,
    optimizer=optimizer.adamw(c.optimizer, steps),
    schedule=optimizer.schedule(c.optimizer, steps),
    validate=validate,
    select="negative_loss",
    unit="items",
    amounts=lambda _: Amounts(batch, flops.mm_rqvae(tables.model, batch)),
    blame=lambda rows: f"items {sorted(items_of(rows).tolist())[:20]}",
    seed=config.seed,
  )
  result = workdir.fit(task)
  codes = all_codes(result.model, features)
  report = health({m: x[1:] for m, x in codes.items()}, c.quantizer.codes)
  print(table(report))
  books = {
    m: part.quantizer.codebook_LCD[...] for m, part in result.model.model.by_modality.items()
  }
  workdir.write(
    STAGE,
    {f"codes.{m}": x for m, x in codes.items()}
    | {f"codebooks.{m}": np.asarray(x) for m, x in books.items()},
    result.model.model,
    best_step=result.best_step,
    health=report,
  )
