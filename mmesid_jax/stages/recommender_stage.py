"""Recommender stage: a Llama on shared-prefix rows.

Writes recommender.safetensors: the model without what its checkpoint holds, and the whitening of
its feature tables; and with LoRA a PEFT directory, adapter/, beside it.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmesid_jax.config.schema import code_tokens, coded_modalities
from mmesid_jax.data.batches import PackedBatches
from mmesid_jax.data.dataset import Dataset, popularity
from mmesid_jax.data.history_pieces import PieceCounts, training_pieces
from mmesid_jax.data.packing import Batch
from mmesid_jax.data.row_layout import Layout, with_capacity
from mmesid_jax.data.whitening import Whitening, fit_whitening, whiten, whitenings_of
from mmesid_jax.display import reporter
from mmesid_jax.errors import UserError
from mmesid_jax.evaluation.evaluator import Evaluator, RankingModel
from mmesid_jax.files import artifact
from mmesid_jax.losses.next_item import catalogue_cross_entropy, sampled_cross_entropy
from mmesid_jax.models import flops
from mmesid_jax.models.extend_catalogue import mask_as_new
from mmesid_jax.models.fusion import FrequencyFusion
from mmesid_jax.models.generate.generated_ranking import GENERATED, GeneratedRanking
from mmesid_jax.models.generate.head import GenerativeHead
from mmesid_jax.models.item_encoder import ItemEncoder
from mmesid_jax.models.sequence_recommender import RecommenderModel
from mmesid_jax.parallel import sharding
from mmesid_jax.parallel.placement import load_model
from mmesid_jax.quantize.id_trie import IdTrie, build_trie
from mmesid_jax.quantize.item_ids import ItemIds, join_codes, number_shared_codes
from mmesid_jax.stages import backbone
from mmesid_jax.stages.semantic_id_stage import SEMANTIC_IDS, read_semantic_ids
from mmesid_jax.stages.sequence_task import (
  check_batch_divides,
  evaluation_layout,
  next_item_task,
)
from mmesid_jax.stages.stage import Stage
from mmesid_jax.stages.workdir import Workdir
from mmesid_jax.training.step import Loss


def batch_layout(config: ConfigDict) -> Layout:
  """The batch shape of `config` = config.recommender."""
  return Layout(config.rows, config.row_length, config.targets, config.prompt.response)


def init_recommender(
  config: ConfigDict,
  seed: int,
  *,
  features: Mapping[str, np.ndarray],
  codes: Mapping[str, np.ndarray],
  codebooks: Mapping[str, np.ndarray],
  counts_I: np.ndarray,
  ids: tuple[ItemIds, IdTrie] | None = None,
) -> RecommenderModel:
  """The untrained model of `config` = config.recommender, around the given tables.

  ids: `unique_ids` where the head generates; None = computed here.
  """
  rngs = nnx.Rngs(RECOMMENDER.key(seed))
  items = ItemEncoder(
    features,
    codes,
    codebooks,
    D=config.width,
    kind=config.encoder,
    frozen_codes=config.codes == "frozen",
    compute=config.backbone.compute,
    rngs=rngs,
  )
  gates = FrequencyFusion(
    counts_I, len(features), kind=config.fusion, temperature=config.gate_temperature, rngs=rngs
  )
  generate = None
  if config.head != "rank":
    ids, trie = ids or unique_ids(config, codes, codebooks)
    spelled = coded_modalities(config.generate.modality, codes)
    levels = sum(codes[m].shape[1] for m in spelled)
    generate = GenerativeHead(ids, trie, spelled, levels, config.width, rngs=rngs)
  from_checkpoint = ["backbone"] if config.backbone.checkpoint else []
  if config.prompt.text:
    from_checkpoint.append("prompt")
  return RecommenderModel(
    items,
    gates,
    backbone.llama_config(config),
    P=config.prompt.length,
    S=config.prompt.response,
    item_dropout=config.item_dropout,
    token_scale=config.token_scale,
    state_scale=config.state_scale,
    generate=generate,
    from_checkpoint=from_checkpoint,
    rngs=rngs,
  )


def unique_ids(
  config: ConfigDict, codes: Mapping[str, np.ndarray], codebooks: Mapping[str, np.ndarray]
) -> tuple[ItemIds, IdTrie]:
  """The IDs that the head of `config` = config.recommender generates."""
  spelled = coded_modalities(config.generate.modality, codes)
  joined = join_codes([np.asarray(codes[m]) for m in spelled])
  ids = number_shared_codes(joined, codebooks[spelled[0]].shape[1])
  return ids, build_trie(ids.id_IL)


def describe_ids(head: GenerativeHead) -> str:
  """The IDs that are generated, in words: their levels, and how many items share their codes."""
  levels, items = len(head.place_LD[...]), len(head.id_IL[...]) - 1
  line = f"semantic IDs of {' and '.join(head.modalities)}, {levels} codes each; "
  if not head.shared:
    return line + "no two items share all"
  return line + (
    f"{head.shared:,} of {items:,} items ({head.shared / items:.1%}) share theirs with others and "
    f"get a number in addition (at most {head.sizes[-1]:,} items share one ID)"
  )


def recommender_loss(config: ConfigDict, counts_I: np.ndarray) -> Loss:
  """The loss of `config` = config.recommender: cross-entropy over all items (MME-SID, section 4),
  or over config.negatives sampled ones; for the head "generate", of the codes of the target's ID
  (TIGER, section 3.2), and for "both" the sum of the two.

  With config.as_new every step samples that share of the catalogue and treats it as new items.
  counts_I: how often each item was met in training; row 0 is padding.
  """
  negatives = Negatives(config.negatives, counts_I) if config.negatives else None

  def loss(model: RecommenderModel, batch: Batch, key: jax.Array):
    if config.as_new:
      key, item_key = jax.random.split(key)
      new_I = jax.random.bernoulli(item_key, config.as_new, (model.num_items + 1,))
      model = mask_as_new(model, new_I)
    key, negative_key = jax.random.split(key) if negatives else (key, None)
    if config.head == "rank":
      return rank_loss(model, model.hidden(batch, key), batch, negative_key), {}
    h_QLD = model.code_states(batch, key)
    log_p_Q = model.generate.item_log_probability(
      model.generate.codebook(model.items), h_QLD, batch.target_Q
    )
    code_loss = -jnp.where(batch.weight_Q > 0, batch.weight_Q * log_p_Q, 0).sum()
    weight = batch.weight_Q.sum()
    if config.head == "generate":
      return (code_loss, weight), {}
    total, _ = rank_loss(model, h_QLD[:, 0], batch, negative_key)
    places = jnp.maximum(weight, 1)
    scalars = {"rank_loss": total / places, "code_loss": code_loss / places}
    return (total + config.generate.weight * code_loss, weight), scalars

  def rank_loss(model: RecommenderModel, h_QD: jax.Array, batch: Batch, key):
    if negatives:
      item_E, log_expected_E = negatives.sample(key)
      # Few rows of the catalogue are read, so only they are projected.
      scorer = model.scorer(h_QD, project=False)
      return sampled_cross_entropy(scorer, batch.target_Q, batch.weight_Q, item_E, log_expected_E)
    chunk = config.softmax_chunk
    return catalogue_cross_entropy(model.scorer(h_QD), batch.target_Q, batch.weight_Q, chunk)

  return loss


class Negatives:
  """Samples items by how often they were met in training, plus one, so frequent items more often.

  A log-Q correction makes up for it.
  """

  def __init__(self, number: int, counts_I: np.ndarray):
    self._number, self._counts_I = number, counts_I
    self._pool = np.repeat(np.arange(1, len(counts_I)), counts_I[1:] + 1).astype(np.int32)

  def sample(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Items int32 [E] and the logarithm of how often each is expected among them, float32 [E]."""
    place_E = jax.random.randint(key, (self._number,), 0, len(self._pool))
    item_E = jnp.asarray(self._pool)[place_E]
    expected_E = self._number * (jnp.asarray(self._counts_I)[item_E] + 1) / len(self._pool)
    return item_E, jnp.log(expected_E)


def read_codes(workdir: Workdir) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Codes and codebooks by modality, as config.recommender.codes says; random codebooks have the
  scale of the trained ones."""
  choice = workdir.config.recommender.codes
  if choice == "none":
    return {}, {}
  codes, books, _ = read_semantic_ids(workdir)
  if choice == "random":
    rng = np.random.default_rng(workdir.config.seed)
    books = {m: rng.normal(0, x.std(), x.shape).astype(np.float32) for m, x in books.items()}
  if workdir.config.recommender.whiten:
    std = workdir.config.recommender.whiten_std
    books = {m: rescale_codebooks(x, codes[m][1:], std) for m, x in books.items()}
  return codes, books


def rescale_codebooks(book_LCD: np.ndarray, code_EL: np.ndarray, std: float) -> np.ndarray:
  """The codebooks, shifted and scaled so that the items' sums of code vectors have mean 0 and
  `std`.

  Distances between items keep their proportions. Without it the sums are several times as large as
  the learned rows and the whitened features that they are added to.
  """
  levels = np.arange(len(book_LCD))
  shift_L1D = np.stack([book_LCD[level][code_EL[:, level]].mean(0) for level in levels])[:, None]
  centered_LCD = book_LCD - shift_L1D
  spread = centered_LCD[levels, code_EL].sum(1).std()
  return (centered_LCD * (std / max(spread, 1e-12))).astype(np.float32)


def make_batches(config: ConfigDict, dataset: Dataset) -> tuple[PackedBatches, PieceCounts]:
  """The stage's batches of the training part, and what cutting long histories did."""
  c = config.recommender
  layout = dataclasses.replace(batch_layout(c), codes=code_tokens(config))
  pieces, counts = training_pieces(
    dataset,
    layout,
    targets_per_user=c.targets_per_user,
    targets_per_piece=c.targets_per_piece,
  )
  room = with_capacity(layout, pieces, sharding.shard_count("targets"))
  return PackedBatches(dataset, pieces, room, seed=config.seed), counts


def fit_whitenings(workdir: Workdir) -> dict[str, Whitening]:
  """modality -> whitening of the workdir's feature table; {} without whitening."""
  c = workdir.config.recommender
  features = workdir.features() if c.whiten else {}
  return {m: fit_whitening(x, min(c.whiten, x.shape[1]), c.whiten_std) for m, x in features.items()}


def init_model(workdir: Workdir, maps: Mapping[str, Whitening] | None = None) -> RecommenderModel:
  """The untrained model of a workdir, around its features, codes and codebooks.

  maps: whitening of the features, None = `fit_whitenings`. The weights of a checkpoint are not read
  yet.
  """
  c, maps = workdir.config.recommender, fit_whitenings(workdir) if maps is None else maps
  features = workdir.features()
  features |= {m: whiten(features[m], by) for m, by in maps.items()}
  codes, codebooks = read_codes(workdir)
  return init_recommender(
    c,
    workdir.config.seed,
    features=features,
    codes=codes,
    codebooks=codebooks,
    counts_I=popularity(workdir.dataset),
  )


def load_recommender(
  workdir_path, config: ConfigDict, *, pretrained: bool = True
) -> RecommenderModel:
  """The trained model, from workdir_path/recommender.safetensors alone.

  pretrained: False leaves the checkpoint's weights as shapes, which is enough for the items.
  """
  path = workdir_path / f"{RECOMMENDER.name}.safetensors"
  found, header = RECOMMENDER.read(workdir_path, config)
  if pretrained and "backbone" in header:  # not in artifacts of earlier versions
    backbone.check_backbone(config.recommender, header["backbone"], path)
  named = artifact.strip_prefix(found, "model.")

  def tables(part: str) -> dict[str, np.ndarray]:
    return artifact.strip_prefix(named, f"items.{part}.")

  features, codes, codebooks = map(tables, ("feature_IV", "code_IL", "codebook_LCD"))
  generates = config.recommender.head != "rank"
  ids = unique_ids(config.recommender, codes, codebooks) if generates else None

  def abstract() -> RecommenderModel:
    return init_recommender(
      config.recommender,
      config.seed,
      features=features,
      codes=codes,
      codebooks=codebooks,
      counts_I=found["counts"],
      ids=ids,
    )

  model = load_model(abstract, named, str(path))
  if ids:
    model.generate.set_ids(ids[0].id_IL, ids[1])
  if pretrained:
    backbone.load_backbone(model, config.recommender)
  return model


def load_whitenings(workdir_path, config: ConfigDict) -> dict[str, Whitening]:
  """modality -> whitening of the trained model's feature table, from its artifact alone; {} without
  whitening."""
  if not config.recommender.whiten:
    return {}
  name, prefix = RECOMMENDER.name, "whitening."
  path = workdir_path / f"{name}.safetensors"
  found, _ = artifact.read_artifact(path, name, prefix=prefix)
  if not found:
    raise UserError(f"{path}: does not say how its features were whitened; train it again")
  return whitenings_of(artifact.strip_prefix(found, prefix))


class RecommenderStage(Stage):
  """A Llama on the packed histories, around the feature tables and the semantic IDs."""

  name = "recommender"
  summary = "a Llama on the histories"
  config_keys = ("evaluation.select",)
  model_name = "MME-SID"
  folders = ("adapter",)

  def upstream(self, config: ConfigDict) -> tuple[Stage, ...]:
    codes = () if config.recommender.codes == "none" else (SEMANTIC_IDS,)
    return (*SEMANTIC_IDS.upstream(config), *codes)

  def further_inputs(self, config: ConfigDict) -> dict[str, str]:
    return backbone.backbone_fingerprint(config.recommender)

  def check(self, config: ConfigDict) -> None:
    check_batch_divides(self.name, config.recommender)
    backbone.check_backbone_divides(config.recommender)

  def layout(self, config: ConfigDict) -> Layout:
    return batch_layout(config.recommender)

  def train(self, workdir: Workdir) -> None:
    config, dataset = workdir.config, workdir.dataset
    c, counts_I, beams = config.recommender, popularity(dataset), config.evaluation.beams
    batches, counts = make_batches(config, dataset)
    maps = fit_whitenings(workdir)
    model = init_model(workdir, maps)
    if (head := model.generate) is not None:
      reporter.info(f"{self.name}: {describe_ids(head)}")
      if head.shared and head.sizes[-1] > max(head.sizes[:-1]):
        reporter.warn(
          f"{self.name}: {head.sizes[-1]:,} items have equal codes, and nothing but a number tells "
          "them apart; are their vectors missing?"
        )
    backbone.prepare_backbone(model, c)
    layout = evaluation_layout(self.layout(config), config.evaluation.targets)
    generates = c.head == "generate"  # and gives no scores to validate
    task = next_item_task(
      self.name,
      config,
      c,
      model=model,
      loss=recommender_loss(c, counts_I),
      batches=batches,
      counts=counts,
      evaluator=Evaluator(dataset, layout, "valid"),
      ranking=(lambda model: GeneratedRanking(model, beams)) if generates else None,
      flops=functools.partial(flops.recommender_flops, ranks=not generates),
      prompt=c.prompt.length,
      window=model.backbone.config.window,
    )
    result = self.fit(workdir, task)
    backbone.export_adapter(result.model, c, workdir.path / "adapter")
    tensors = {"counts": counts_I}
    for m, by in maps.items():
      tensors |= by.tensors(f"whitening.{m}.")
    self.write(
      workdir,
      tensors,
      result.model,
      cut_users=counts.cut_users,
      backbone=backbone.backbone_fingerprint(c),
      **result.summary(config.evaluation.select),
    )

  def load_model(self, workdir: Workdir) -> RankingModel:
    """The model whose scores rank items: those of generated IDs where nothing else is trained."""
    config = workdir.config
    model = load_recommender(workdir.path, config)
    generates = config.recommender.head == "generate"
    return GeneratedRanking(model, config.evaluation.beams) if generates else model

  def further_models(self, workdir: Workdir, model: RankingModel) -> dict[str, RankingModel]:
    config = workdir.config
    if config.recommender.head != "both":
      return {}
    beams = config.evaluation.beams
    return {f"{self.model_name}, {k}": kind(model, beams) for k, kind in GENERATED.items()}


RECOMMENDER = RecommenderStage()
