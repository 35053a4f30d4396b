"""Semantic-ID stage: MM-RQ-VAE over all items, then every item's codes.

Writes semantic_ids.safetensors: `codes.<modality>` int32 [I, L] (row 0 zero),
`codebooks.<modality>` float32 [L, C, D] and `means.<modality>` float32 [V], of the items' vectors;
the header holds the health of the codebooks.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.data.batches import item_batches
from mmesid_jax.data.whitening import covariance, mean_and_deviation, principal_components
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.codebook_health import (
  codebook_table,
  describe_dead_codes,
  measure_health,
)
from mmesid_jax.files import artifact
from mmesid_jax.losses.semantic_id_loss import semantic_id_loss
from mmesid_jax.models import flops
from mmesid_jax.models.fsq import coordinate_sizes
from mmesid_jax.models.mm_rqvae import MMRQVAE, Autoencoder
from mmesid_jax.models.residual_quantizer import QuantizerConfig
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.placement import load_model
from mmesid_jax.quantize.kmeans import residual_kmeans
from mmesid_jax.stages.collaborative_stage import COLLABORATIVE
from mmesid_jax.stages.item_batches import (
  FeatureTables,
  ItemBatch,
  encode_table,
  item_chunks,
  item_ids,
  make_item_batch,
)
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import Workdir
from mmesid_jax.training import optimizer
from mmesid_jax.training.loop import Task
from mmesid_jax.training.throughput import Amounts


def check_quantizer(config: ConfigDict, num_items: int) -> None:
  """Raises UserError for a quantizer that the data set does not allow.

  config: config.semantic_ids. Refused are more codes than items, a grid without that many cells,
  k-means with a random start, and batches that the mesh of the context does not divide.
  """
  batch = min(config.batch, num_items)
  sharding.check_divides("--config.semantic_ids.batch, with the items there are", batch, "batch")
  if config.quantizer.codes > num_items:
    raise UserError(
      f"--config.semantic_ids.quantizer.codes={config.quantizer.codes}: more than the {num_items} "
      "items of the data set, so most would never be used"
    )
  if (config.quantizer.kind, config.quantizer.start) == ("kmeans", "random"):
    raise UserError(
      "--config.semantic_ids.quantizer.start=random: kind=kmeans has nothing but its start; "
      "expected balanced or plain"
    )
  if config.quantizer.kind == "fsq":
    try:
      coordinate_sizes(config.quantizer.codes)
    except ValueError as error:
      raise UserError(f"--config.semantic_ids.quantizer.codes: {error}") from error


def init_tables(
  config: ConfigDict, features: Mapping[str, np.ndarray], *, code_width: int, seed: int
) -> FeatureTables:
  """Untrained autoencoders whose codebooks start from k-means through the untrained encoders.

  With quantizer.kind "kmeans" the encoders are principal components, and training is complete.
  """
  widths = {m: x.shape[1] for m, x in features.items()}
  q, model = config.quantizer, init_mm_rqvae(config, widths, code_width=code_width, seed=seed)
  for m, part in model.by_modality.items():
    mean_V, deviation = mean_and_deviation(features[m])
    if config.standardize:
      part.mean_V[...] = jnp.asarray(mean_V, jnp.float32)
      part.scale[...] = jnp.float32(deviation)
    if q.kind == "kmeans":
      _principal(part, features[m], mean_V, code_width)
  tables, start = FeatureTables(model, features), q.start
  if start != "random" and q.kind != "fsq":
    for m, part in model.by_modality.items():
      part.quantizer.codebook_LCD[...] = jnp.asarray(
        residual_kmeans(
          encode_table(part, features[m], code_width),
          q.levels,
          q.codes,
          balanced=start == "balanced",
          seed=seed,
          overwrite=True,
        )
      )
  return tables


def init_mm_rqvae(
  config: ConfigDict, widths: Mapping[str, int], *, code_width: int, seed: int
) -> MMRQVAE:
  """Untrained autoencoders and codebooks. widths: modality -> V."""
  q = config.quantizer
  return MMRQVAE(
    widths,
    hidden=() if q.kind == "kmeans" else config.hidden,
    D=code_width,
    quantizer=QuantizerConfig(**{name: q[name] for name in QuantizerConfig._fields}),
    grid=q.kind == "fsq",
    rngs=nnx.Rngs(SEMANTIC_IDS.key(seed)),
  )


def _principal(part: Autoencoder, table_IV: np.ndarray, mean_V: np.ndarray, D: int) -> None:
  """Encoder and decoder become the first D principal components, the rest of D zero."""
  _, directions = principal_components(covariance(table_IV, mean_V), min(len(mean_V), D))
  kernel_VD = np.pad(directions, ((0, 0), (0, D - directions.shape[1]))).astype(np.float32)
  center_V = np.asarray(part.standardize(jnp.asarray(mean_V, jnp.float32)))
  (encode,), (decode,) = part.encoder.layers, part.decoder.layers
  encode.kernel[...], encode.bias[...] = jnp.asarray(kernel_VD), jnp.asarray(-center_V @ kernel_VD)
  decode.kernel[...], decode.bias[...] = jnp.asarray(kernel_VD.T), jnp.asarray(center_V)


def loss_options(config: ConfigDict) -> dict:
  """The arguments of `semantic_id_loss` from `config` = config.semantic_ids."""
  names = (
    "reconstruction",
    "bandwidths",
    "alignment",
    "temperature",
    "reconstruction_weight",
    "quantization_weight",
    "alignment_weight",
  )
  return {name: config[name] for name in names}


def mm_rqvae_loss(config: ConfigDict):
  """The loss of a batch of items, as step.Loss. config: config.semantic_ids."""
  options = loss_options(config)

  def batch_loss(tables: FeatureTables, batch: ItemBatch, key: jax.Array):
    del key  # training uses no random numbers
    value, parts = semantic_id_loss(tables.model, tables.features(batch), **options)
    return (value, jnp.ones(())), parts  # a loss of pairs of items is no sum over items

  return batch_loss


def mm_rqvae_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
  """The optimizer; code vectors that are moving averages take plain steps."""
  adamw = optimizer.make_optimizer(config.optimizer, steps)
  if config.quantizer.learning == "average":
    return optimizer.with_moving_averages(adamw, "codebook_LCD", config.quantizer.average_rate)
  return adamw


@nnx.jit
def _encode(tables: FeatureTables, batch: ItemBatch) -> dict[str, jax.Array]:
  found = {m: tables.model.encode(m, x_BV) for m, x_BV in tables.features(batch).items()}
  return {m: sharding.constrain(code_BL, None, None) for m, code_BL in found.items()}


def encode_catalogue(
  tables: FeatureTables, features: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """modality -> int32 [I, L] by the nearest code; row 0 is zero."""
  num_items = len(next(iter(features.values()))) - 1
  batches = (make_item_batch(features, np.arange(r.start, r.stop)) for r in item_chunks(num_items))
  found = [jax.device_get(_encode(tables, batch)) for batch in batches]
  return {
    m: np.concatenate([np.zeros_like(found[0][m][:1]), *(part[m] for part in found)])
    for m in found[0]
  }


class SemanticIDs(NamedTuple):
  """The items' semantic IDs. modality -> codes int32 [I, L] and codebook float32
  [L, C, D]; and its header."""

  codes: dict[str, np.ndarray]
  codebooks: dict[str, np.ndarray]
  header: dict[str, Any]


def read_semantic_ids(workdir: Workdir) -> SemanticIDs:
  """The workdir's artifact. Raises UserError."""
  found, header = SEMANTIC_IDS.read(workdir.path, workdir.config)
  codes, books = (artifact.strip_prefix(found, prefix) for prefix in ("codes.", "codebooks."))
  return SemanticIDs(codes, books, header)


class SemanticIDStage(Stage):
  """MM-RQ-VAE on all items' features, and the codes that it gives them."""

  name = "semantic_ids"
  summary = "MM-RQ-VAE, for codes and codebooks of every modality"
  fewest_epochs = 0  # of k-means
  config_keys = ("recommender.width",)  # code vectors are as wide as the model that reads them

  def upstream(self, config: ConfigDict) -> tuple[Stage, ...]:
    return (COLLABORATIVE,) if config.features.collaborative == "stage" else ()

  def check_data(self, workdir: Workdir) -> None:
    check_quantizer(workdir.config.semantic_ids, workdir.dataset.num_items)

  def train(self, workdir: Workdir) -> None:
    config = workdir.config
    c = config.semantic_ids
    categories = workdir.dataset.categories()[1:]  # first: a damaged items.jsonl stops here
    features = workdir.features(mapped=True)
    tables = init_tables(c, features, code_width=config.recommender.width, seed=config.seed)
    best_step = best_epoch = 0
    if c.quantizer.kind != "kmeans":  # which the initialization has trained already
      result = self.fit(workdir, quantizer_task(config, tables, features))
      tables, best_step, best_epoch = result.model, result.best_step, result.best_epoch
    codes = encode_catalogue(tables, features)
    report = measure_health(
      {m: code_IL[1:] for m, code_IL in codes.items()},
      c.quantizer.codes,
      categories,
    )
    reporter.info(codebook_table(report))
    if dead := describe_dead_codes(report):
      reporter.warn(f"{self.name}: {dead}")
    books = {m: part.quantizer.codebook_LCD[...] for m, part in tables.model.by_modality.items()}
    self.write(
      workdir,
      {f"codes.{m}": code_IL for m, code_IL in codes.items()}
      | {f"codebooks.{m}": np.asarray(book_LCD) for m, book_LCD in books.items()}
      | {f"means.{m}": np.float32(mean_and_deviation(x)[0]) for m, x in features.items()},
      tables.model,
      best_step=best_step,
      best_epoch=best_epoch,
      health=report,
    )


SEMANTIC_IDS = SemanticIDStage()


def quantizer_task(
  config: ConfigDict, tables: FeatureTables, features: Mapping[str, np.ndarray]
) -> Task:
  """Training of the quantizer, validated on all items; what reconstructs them best is kept."""
  c, num_items = config.semantic_ids, len(next(iter(features.values()))) - 1
  batch_size = min(c.batch, num_items)
  steps_per_epoch = -(-num_items // batch_size)
  steps = steps_per_epoch * c.epochs
  # arrays are counted now: training gives them away
  work = Amounts(batch_size, flops.mm_rqvae_flops(tables.model, batch_size))
  return Task(
    name=SEMANTIC_IDS.name,
    model=tables,
    loss=mm_rqvae_loss(c),
    batches=item_batches(num_items, batch_size, seed=config.seed).map(
      lambda item_B: make_item_batch(features, item_B)
    ),
    steps=steps,
    steps_per_epoch=steps_per_epoch,
    validate_every=steps_per_epoch * c.validate_every_epochs,
    optimizer=mm_rqvae_optimizer(c, steps),
    schedule=optimizer.learning_rate_schedule(c.optimizer, steps),
    validate=_validation(config, features, batch_size),
    # not the loss: its quantization term is in units of the code space, which grows
    select="negative_reconstruction",
    unit="items",
    amounts=lambda _: work,
    blame=lambda rows: f"items {sorted(item_ids(rows).tolist())[:20]}",
    seed=config.seed,
  )


def _validation(
  config: ConfigDict, features: Mapping[str, np.ndarray], batch_size: int
) -> Callable[[FeatureTables], dict[str, float]]:
  """Loss over batches that are the same every time, with the nearest code on every level, and the
  health of the codes."""
  c, num_items = config.semantic_ids, len(next(iter(features.values()))) - 1
  batches = -(-num_items // batch_size)
  order = np.random.default_rng(config.seed).permutation(num_items) + 1
  item_EB = np.resize(order, (batches, batch_size))
  options = loss_options(c)

  @nnx.jit
  def exported_loss(tables: FeatureTables, batch: ItemBatch) -> dict[str, jax.Array]:
    features = tables.features(batch)
    value, parts = semantic_id_loss(tables.model, features, training=False, **options)
    return {"loss": value, **parts}

  def validate(tables: FeatureTables) -> dict[str, float]:
    codes = {m: code_IL[1:] for m, code_IL in encode_catalogue(tables, features).items()}
    losses = [exported_loss(tables, make_item_batch(features, item_B)) for item_B in item_EB]
    metrics = {name: float(np.mean([one[name] for one in losses])) for name in losses[0]}
    metrics["negative_reconstruction"] = -metrics["reconstruction"]
    for m, of_modality in measure_health(codes, c.quantizer.codes).items():
      metrics[f"{m}/collision_rate"] = of_modality["collision_rate"]
      for level, of_level in enumerate(of_modality.get("levels", []), 1):
        metrics |= {f"{m}/level{level}/{name}": value for name, value in of_level.items()}
    return metrics

  return validate


def load_mm_rqvae(
  workdir_path: pathlib.Path, config: ConfigDict
) -> tuple[MMRQVAE, dict[str, np.ndarray], str]:
  """The trained model, the means of its items' vectors by modality, and the artifact's fingerprint,
  from workdir_path/semantic_ids.safetensors alone."""
  path = workdir_path / f"{SEMANTIC_IDS.name}.safetensors"
  found, header = SEMANTIC_IDS.read(workdir_path, config)
  means = artifact.strip_prefix(found, "means.")
  if not means:
    raise UserError(
      f"{path}: holds no means of the items' vectors; train the stage {SEMANTIC_IDS.name} again"
    )
  model = load_model(
    lambda: init_mm_rqvae(
      config.semantic_ids,
      {m: len(x) for m, x in means.items()},
      code_width=config.recommender.width,
      seed=config.seed,
    ),
    artifact.strip_prefix(found, "model."),
    str(path),
  )
  return model, means, header["fingerprint"]
