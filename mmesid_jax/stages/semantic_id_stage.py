"""Semantic-ID stage: MM-RQ-VAE over all items, then every item's codes.

Writes semantic_ids.safetensors: `codes.<modality>` int32 [I + 1, L] (row 0 zero),
`codebooks.<modality>` float32 [L, C, D] and `means.<modality>` float32 [V], of the items' vectors;
the header holds the health of the codebooks.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.batches import item_batches
from mmesid_jax.data.features import covariance, mean_and_deviation, principal_components
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.codebook_health import health, table
from mmesid_jax.files import artifact
from mmesid_jax.losses.semantic_id_loss import semantic_id_loss
from mmesid_jax.models import flops
from mmesid_jax.models.fsq import digits
from mmesid_jax.models.mm_rqvae import MMRQVAE, Autoencoder
from mmesid_jax.models.residual_quantizer import QuantizerConfig
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.placement import loaded
from mmesid_jax.quantize.kmeans import residual_kmeans
from mmesid_jax.stages.item_batches import Batch, Tables, batch_of, chunks, encoded, items_of
from mmesid_jax.stages.workdir import Workdir, key_for
from mmesid_jax.training import optimizer
from mmesid_jax.training.loop import Task
from mmesid_jax.training.throughput import Amounts

STAGE = "semantic_ids"


def check(config: ConfigDict, num_items: int) -> None:
  """Raises UserError where config.semantic_ids = config asks for more codes than there are items,
  for a grid that has not so many, or for k-means that is none; or where the mesh of the context
  does not divide its batches."""
  batch = min(config.batch, num_items)
  sharding.check_divides("--config.semantic_ids.batch, with the items there are", batch, "batch")
  if config.quantizer.codes > num_items:
    raise UserError(
      f"--config.semantic_ids.quantizer.codes={config.quantizer.codes}: more than the {num_items} "
      "items of the data set, so most would stand for nothing"
    )
  if (config.quantizer.kind, config.quantizer.start) == ("kmeans", "random"):
    raise UserError(
      "--config.semantic_ids.quantizer.start=random: of kind kmeans the start is all there is; "
      "expected balanced or plain"
    )
  if config.quantizer.kind == "fsq":
    try:
      digits(config.quantizer.codes)
    except ValueError as error:
      raise UserError(f"--config.semantic_ids.quantizer.codes: {error}") from error


def build(
  config: ConfigDict, features: Mapping[str, np.ndarray], *, code_width: int, seed: int
) -> Tables:
  """Freshly drawn autoencoders whose codebooks start from k-means through the untrained encoders.

  Of quantizer.kind "kmeans" the encoders are principal components, and this is all there is.
  """
  widths = {m: x.shape[1] for m, x in features.items()}
  q, model = config.quantizer, drawn(config, widths, code_width=code_width, seed=seed)
  for m, part in model.by_modality.items():
    mean_V, deviation = mean_and_deviation(features[m])
    if config.standardise:
      part.mean_V[...] = jnp.asarray(mean_V, jnp.float32)
      part.scale[...] = jnp.float32(deviation)
    if q.kind == "kmeans":
      _principal(part, features[m], mean_V, code_width)
  tables, start = Tables(model, features), q.start
  if start != "random" and q.kind != "fsq":
    for m, part in model.by_modality.items():
      part.quantizer.codebook_LCD[...] = jnp.asarray(
        residual_kmeans(
          encoded(part, features[m], code_width),
          q.levels,
          q.codes,
          balanced=start == "balanced",
          seed=seed,
          overwrite=True,
        )
      )
  return tables


def drawn(config: ConfigDict, widths: Mapping[str, int], *, code_width: int, seed: int) -> MMRQVAE:
  """Freshly drawn autoencoders and codebooks; widths: modality -> V."""
  q = config.quantizer
  return MMRQVAE(
    widths,
    hidden=() if q.kind == "kmeans" else config.hidden,
    D=code_width,
    quantizer=QuantizerConfig(**{name: q[name] for name in QuantizerConfig._fields}),
    grid=q.kind == "fsq",
    rngs=nnx.Rngs(key_for(seed, STAGE)),
  )


def _principal(part: Autoencoder, table_IV: np.ndarray, mean_V: np.ndarray, D: int) -> None:
  """Encoder and decoder become the first D principal components, the rest of D zero."""
  _, directions = principal_components(covariance(table_IV, mean_V), min(len(mean_V), D))
  kernel_VD = np.pad(directions, ((0, 0), (0, D - directions.shape[1]))).astype(np.float32)
  centre_V = np.asarray(part.standardised(jnp.asarray(mean_V, jnp.float32)))
  (encode,), (decode,) = part.encoder.layers, part.decoder.layers
  encode.kernel[...], encode.bias[...] = jnp.asarray(kernel_VD), jnp.asarray(-centre_V @ kernel_VD)
  decode.kernel[...], decode.bias[...] = jnp.asarray(kernel_VD.T), jnp.asarray(centre_V)


def loss_options(config: ConfigDict) -> dict:
  """The keys of `config` = config.semantic_ids that mm_rqvae.loss takes."""
  names = (
    "reconstruction",
    "bandwidths",
    "alignment",
    "temperature",
    "reconstruction_weight",
    "quantisation_weight",
    "alignment_weight",
  )
  return {name: config[name] for name in names}


def loss(config: ConfigDict):
  """The loss of a batch of items by `config` = config.semantic_ids, as step.Loss."""
  options = loss_options(config)

  def of_batch(tables: Tables, batch: Batch, key: jax.Array):
    del key  # nothing is drawn while it trains
    value, parts = semantic_id_loss(tables.model, tables.features(batch), **options)
    return (value, jnp.ones(())), parts  # a loss of pairs of items is no sum over items

  return of_batch


def learner(config: ConfigDict, steps: int) -> optax.GradientTransformation:
  """AdamW; code vectors take plain steps where config.quantizer has them as moving averages."""
  adamw = optimizer.adamw(config.optimizer, steps)
  if config.quantizer.learning == "average":
    return optimizer.averaging(adamw, "codebook_LCD", config.quantizer.average_rate)
  return adamw


@nnx.jit
def _encode(tables: Tables, batch: Batch) -> dict[str, jax.Array]:
  found = {m: tables.model.encode(m, x_BV) for m, x_BV in tables.features(batch).items()}
  return {m: sharding.constrain(code_BL, None, None) for m, code_BL in found.items()}


def all_codes(tables: Tables, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """modality -> int32 [I + 1, L] by the nearest code; row 0 is zero."""
  num_items = len(next(iter(features.values()))) - 1
  batches = (batch_of(features, np.arange(r.start, r.stop)) for r in chunks(num_items))
  found = [jax.device_get(_encode(tables, batch)) for batch in batches]
  return {
    m: np.concatenate([np.zeros_like(found[0][m][:1]), *(part[m] for part in found)])
    for m in found[0]
  }


class SemanticIDs(NamedTuple):
  """What the artifact says of the items. modality -> codes int32 [I + 1, L] and codebook float32
  [L, C, D]; and its header."""

  codes: dict[str, np.ndarray]
  codebooks: dict[str, np.ndarray]
  header: dict[str, Any]


def read(workdir: Workdir) -> SemanticIDs:
  """The workdir's artifact. Raises UserError for none, or one whose codes are not in its
  codebooks."""
  path = workdir.artifact(STAGE)
  found, header = artifact.read_artifact(path, STAGE)
  codes, books = (artifact.under(found, prefix) for prefix in ("codes.", "codebooks."))
  for m, code_IL in codes.items():
    levels, size = books[m].shape[:2] if m in books else (0, 0)
    if code_IL.shape[1:] != (levels,) or code_IL.min() < 0 or code_IL.max() >= size:
      raise UserError(
        f"{path}: codes.{m} are not in the {levels} levels of {size} codes of codebooks.{m}; "
        f"delete the file and run mmesid_jax.train with the stage {STAGE} again"
      )
  return SemanticIDs(codes, books, header)


def run(workdir: Workdir) -> None:
  """Trains, keeps the parameters that reconstruct all items best, writes the artifact."""
  config, num_items = workdir.config, workdir.dataset.num_items
  categories = workdir.dataset.categories()[1:]
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
  def whole_loss(tables: Tables, batch: Batch) -> dict[str, jax.Array]:
    features = tables.features(batch)
    value, parts = semantic_id_loss(tables.model, features, training=False, **options)
    return {"loss": value, **parts}

  def validate(tables: Tables) -> dict[str, float]:
    report = health({m: x[1:] for m, x in all_codes(tables, features).items()}, c.quantizer.codes)
    losses = [whole_loss(tables, batch_of(features, items)) for items in fixed]
    metrics = {name: float(np.mean([one[name] for one in losses])) for name in losses[0]}
    metrics["negative_reconstruction"] = -metrics["reconstruction"]
    for m, found in report.items():
      metrics[f"{m}/collision_rate"] = found["collision_rate"]
      for level, of_level in enumerate(found.get("levels", []), 1):
        metrics |= {f"{m}/level{level}/{name}": value for name, value in of_level.items()}
    return metrics

  tables = build(c, features, code_width=config.recommender.width, seed=config.seed)
  work = Amounts(batch, flops.mm_rqvae(tables.model, batch))  # now: training gives the arrays away
  task = Task(
    name=STAGE,
    model=tables,
    loss=loss(c),
    batches=item_batches(num_items, batch, seed=config.seed).map(
      lambda item_B: batch_of(features, item_B)
    ),
    steps=steps,
    validate_every=steps_an_epoch * c.validate_every_epochs,
    optimizer=learner(c, steps),
    schedule=optimizer.schedule(c.optimizer, steps),
    validate=validate,
    # not the loss: its quantisation term is in units of the code space, which grows
    select="negative_reconstruction",
    unit="items",
    amounts=lambda _: work,
    blame=lambda rows: f"items {sorted(items_of(rows).tolist())[:20]}",
    seed=config.seed,
  )
  best_step = 0
  if c.quantizer.kind != "kmeans":
    result = workdir.fit(task)
    tables, best_step = result.model, result.best_step
  codes = all_codes(tables, features)
  report = health({m: x[1:] for m, x in codes.items()}, c.quantizer.codes, categories)
  print(table(report))
  books = {m: part.quantizer.codebook_LCD[...] for m, part in tables.model.by_modality.items()}
  workdir.write(
    STAGE,
    {f"codes.{m}": x for m, x in codes.items()}
    | {f"codebooks.{m}": np.asarray(x) for m, x in books.items()}
    | {f"means.{m}": np.float32(mean_and_deviation(x)[0]) for m, x in features.items()},
    tables.model,
    best_step=best_step,
    health=report,
  )


def restore(
  workdir_path: pathlib.Path, config: ConfigDict
) -> tuple[MMRQVAE, dict[str, np.ndarray], str]:
  """The trained model, the means of its items' vectors by modality, and the artifact's fingerprint,
  from workdir_path/semantic_ids.safetensors alone."""
  path = workdir_path / f"{STAGE}.safetensors"
  found, header = artifact.read_artifact(path, STAGE)
  means = artifact.under(found, "means.")
  if not means:
    raise UserError(f"{path}: holds no means of the items' vectors; train the stage {STAGE} again")
  model = loaded(
    lambda: drawn(
      config.semantic_ids,
      {m: len(x) for m, x in means.items()},
      code_width=config.recommender.width,
      seed=config.seed,
    ),
    artifact.under(found, "model."),
    str(path),
  )
  return model, means, header["fingerprint"]
