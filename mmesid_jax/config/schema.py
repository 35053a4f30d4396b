"""Every key of a configuration: its default, the values it may have, and what it means.

To add a key, add a row to KEYS. Defaults, checks, `train --explain` and the documentation's page of
keys follow from it. Keys are read as config.section.name, and set by --config.section.name=value.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mmesid_jax.config.modality_names import is_modality_name
from mmesid_jax.config.presets import PRESETS
from mmesid_jax.config.rules import (
  Key,
  Rule,
  above_zero,
  at_least,
  batch_keys,
  fraction,
  list_of,
  list_of_whole,
  one_of,
  optimizer_keys,
  some_of,
  true_or_false,
  whole,
  words,
)
from mmesid_jax.errors import UserError
from mmesid_jax.parallel.mesh_axes import MESH_AXES

TRAINED = ("collaborative", "semantic_ids", "recommender")  # stages with a training loop
STAGES = ("counts", "content", *TRAINED, "blend")  # these run unless others are named
BASELINES = ()  # stages that run only where config.stages names them
SERVED = ("network", "blend", "generated", "summed")  # what a workdir can answer with
FROM_EVENTS = "collaborative"  # the modality that an item has only once somebody has met it
PROJECTIONS = ("q", "k", "v", "out", "gate", "up", "down")  # of a Llama block
TRACKERS = ("tensorboard", "wandb", "mlflow")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")

# fmt: off
FEATURE_TABLE = Key("", words("a file in data.dir, or empty"),
  "Table of vectors of this modality, one row for each item; empty = no such modality.")

KEYS: Mapping[str, Key] = {
  "preset": Key("best", one_of(*PRESETS),
    "Named set of choices, chosen together with the file: --config=configs/beauty.py:paper."),
  "seed": Key(0, whole(0),
    "Seed of all random numbers: initial parameters, order of the batches, dropout."),
  "stages": Key(STAGES, some_of(*STAGES, *BASELINES),
    "Stages to train; the workdir must already hold the artifacts of those that are left out."),

  "data.source": Key("files", one_of("files", "synthetic", "tfds"),
    "Plain files in data.dir, a synthetic catalogue, or a TensorFlow dataset in that folder."),
  "data.dir": Key("", words("a folder"),
    "Folder of the dataset: sequences.txt, perhaps items.jsonl, times.npy and feature tables."),
  "data.split": Key("leave_one_out", one_of("leave_one_out", "temporal"),
    "Test item: a user's last one, or the first one after a point in time (needs times.npy).",
    added=True),
  "data.split_at": Key(
    (0.8, 0.9),
    Rule(lambda x: len(x) == 2 and 0 < x[0] < x[1] < 1,
      "two shares of all interactions, 0 < first < second < 1"),
    "Temporal split: shares of all interactions that are before validation and before test.",
    added=True),
  "data.synthetic.num_users": Key(2000, whole(1, 10**7),
    "Users of the synthetic catalogue."),
  "data.synthetic.num_items": Key(600, whole(2, 10**7),
    "Items of the synthetic catalogue."),
  "data.synthetic.num_clusters": Key(24, whole(1, 10**6),
    "Clusters of similar items in the synthetic catalogue."),
  "data.synthetic.seed": Key(0, whole(0),
    "Seed of the synthetic catalogue."),

  f"features.{FROM_EVENTS}": Key("stage", words("stage, a file in data.dir, or empty"),
    "Vectors of how items are used: from our collaborative stage, from a table, or none (empty)."),
  "features.text": FEATURE_TABLE._replace(
    meaning="Table of text vectors, one row for each item; empty = no such modality."),
  "features.visual": FEATURE_TABLE._replace(
    meaning="Table of image vectors, one row for each item; empty = no such modality."),

  "counts.followers": Key(512, whole(1, 2**16),
    "Followers that the baseline of counts keeps of each item, the most frequent.", added=True),

  "collaborative.width": Key(128, whole(1, 2**17),
    "Width of SASRec: of its item vectors and hidden states."),
  "collaborative.layers": Key(2, whole(1, 2**12),
    "Number of transformer layers."),
  "collaborative.heads": Key(2, whole(1, 2**12),
    "Attention heads of a layer; must divide the width."),
  "collaborative.dropout": Key(0.5, fraction(),
    "Share of activations that are set to 0 in training."),
  "collaborative.loss": Key("softmax", one_of("softmax", "bce"),
    "Softmax over all items, or cross-entropy with one sampled negative (the published baseline)."),
  **batch_keys("collaborative", rows=16, row_length=128, targets=2048, epochs=14),
  **optimizer_keys("collaborative", 3e-3, 0.0, "cosine", warmup_steps=100),

  "semantic_ids.hidden": Key((512, 512), list_of_whole(1, 2**17),
    "Widths of the hidden layers of an encoder; its decoder has them in reverse order."),
  "semantic_ids.standardize": Key(True, true_or_false(),
    "Center every feature table and divide it by one number, its standard deviation."),
  "semantic_ids.quantizer.kind": Key("rqvae", one_of("rqvae", "kmeans", "fsq"),
    "Codes by trained codebooks, by residual k-means of principal components, or by a fixed grid."),
  "semantic_ids.quantizer.levels": Key(4, whole(1, 2**10),
    "Codes of an item in each modality, from coarse to fine."),
  "semantic_ids.quantizer.codes": Key(256, whole(2, 2**20),
    "Codes to choose from at each level; at most the number of items."),
  "semantic_ids.quantizer.start": Key("balanced", one_of("balanced", "plain", "random"),
    "Start of the codebooks: k-means with equal clusters, plain k-means, or random vectors."),
  "semantic_ids.quantizer.learning": Key("average", one_of("average", "gradient"),
    "Code vectors follow moving averages of their items, or gradients as in the paper."),
  "semantic_ids.quantizer.average_rate": Key(0.1, Rule(lambda x: 0 < x <= 1, "a number in (0, 1]"),
    "Step size of the moving averages."),
  "semantic_ids.quantizer.revival": Key(1.0, Rule(lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    "Speed at which unused codes move towards items, as a share of average_rate."),
  "semantic_ids.quantizer.commitment": Key(0.25, at_least(0),
    "Weight of the loss that pulls an item's encoding towards its codes."),
  "semantic_ids.quantizer.commitment_levels": Key("all", one_of("all", "first"),
    "Levels whose commitment moves the encoder: all, or the first (released code).", added=True),
  "semantic_ids.quantizer.sinkhorn_epsilon": Key(0.003, at_least(0),
    "Sinkhorn's temperature at the last level, in training only; 0 = the nearest code there too."),
  "semantic_ids.quantizer.sinkhorn_iterations": Key(50, whole(1, 10**6),
    "Iterations of Sinkhorn's algorithm."),
  "semantic_ids.quantizer.sinkhorn_first": Key("codes", one_of("codes", "samples"),
    "What an iteration of it scales first: codes, or samples (released code).", added=True),
  "semantic_ids.reconstruction": Key("mse", one_of("mmd", "mse", "both"),
    "Loss: maximum mean discrepancy (the paper's), mean squared error, or the sum of the two."),
  "semantic_ids.bandwidths": Key(
    (0.5,), list_of(above_zero().accepts, f"a non-empty tuple, each {above_zero().text}"),
    "Variance of each Gaussian kernel of MMD, in units of the mean squared distance.", added=True),
  "semantic_ids.alignment": Key("info_nce", one_of("info_nce", "mmd", "none"),
    "Loss that makes the decoded modalities of an item agree: InfoNCE, MMD, or none."),
  "semantic_ids.temperature": Key(0.1, above_zero(),
    "Temperature of InfoNCE."),
  "semantic_ids.reconstruction_weight": Key(3.0, at_least(0),
    "Weight of the reconstruction loss."),
  "semantic_ids.quantization_weight": Key(1.0, at_least(0),
    "Weight of the quantization loss."),
  "semantic_ids.alignment_weight": Key(0.01, at_least(0),
    "Weight of the alignment loss."),
  "semantic_ids.batch": Key(1024, whole(2, 2**24),
    "Items of a batch; all items where there are fewer."),
  "semantic_ids.epochs": Key(20, whole(1, 10**6),
    "Passes over all items."),
  "semantic_ids.validate_every_epochs": Key(5, whole(1),
    "Epochs between validations; the parameters that reconstruct best are kept."),
  **optimizer_keys("semantic_ids", 2e-4, 1e-4, "constant", warmup_steps=0),

  "recommender.backbone.kind": Key("full", one_of("full", "lora", "frozen"),
    "Train all weights of the backbone, LoRA adapters of frozen weights, or nothing of it."),
  "recommender.backbone.checkpoint": Key("", words("a folder, or empty"),
    "Hugging Face directory with pretrained weights; empty = from scratch, with the sizes below."),
  "recommender.backbone.weights": Key("bfloat16", one_of("float32", "bfloat16", "int8", "nf4"),
    "How frozen weights are stored."),
  "recommender.backbone.compute": Key("float32", one_of("float32", "bfloat16"),
    "Number format of activations."),
  "recommender.backbone.remat": Key("none", one_of("none", "products", "layers"),
    "Computed again backward: nothing, all but projections, or whole layers (a third slower)."),
  "recommender.backbone.attention": Key("auto", one_of(*ATTENTIONS),
    "Attention kernel: what suits the device, XLA's, cuDNN's (NVIDIA), or Splash (TPU)."),
  "recommender.backbone.unroll": Key(1, whole(1, 2**12),
    "Layers that are compiled as one piece; more may run faster, and takes longer to compile."),
  "recommender.lora.rank": Key(8, whole(1, 2**16),
    "Rank of the adapters."),
  "recommender.lora.alpha": Key(16.0, above_zero(),
    "Scale of the adapters: their output is multiplied by alpha / rank."),
  "recommender.lora.rslora": Key(False, true_or_false(),
    "Multiply by alpha / sqrt(rank) instead (rank-stabilized LoRA)."),
  "recommender.lora.dropout": Key(0.05, fraction(),
    "Share of the adapters' inputs that are set to 0 in training."),
  "recommender.lora.targets": Key(("gate", "up", "down"), some_of(*PROJECTIONS),
    "Projections of a layer that get an adapter."),
  "recommender.lora.start": Key("", words("a folder, or empty"),
    "PEFT directory with the adapters to start from; empty = new adapters."),
  "recommender.width": Key(128, whole(1, 2**17),
    "Width of the backbone. With a checkpoint this and the next sizes are 0, or the checkpoint's."),
  "recommender.layers": Key(2, whole(1, 2**12),
    "Transformer layers; fewer than a checkpoint has are its first ones."),
  "recommender.heads": Key(2, whole(1, 2**12),
    "Attention heads of a layer."),
  "recommender.kv_heads": Key(2, whole(1, 2**12),
    "Heads of keys and values; must divide the number of heads."),
  "recommender.head_width": Key(64, whole(1, 2**12),
    "Width of a head; even, for rotary positions."),
  "recommender.mlp_width": Key(256, whole(1, 2**20),
    "Hidden width of a layer's MLP."),
  "recommender.rope_theta": Key(500_000.0, above_zero(),
    "Base of the rotary positions."),
  "recommender.norm_eps": Key(1e-5, above_zero(),
    "Epsilon of RMSNorm."),
  "recommender.dropout": Key(0.5, fraction(),
    "Share of activations of the backbone that are set to 0 in training."),
  "recommender.item_dropout": Key(0.5, fraction(),
    "Share of the entries of item vectors that are set to 0 in training."),
  "recommender.token_scale": Key(1.0, above_zero(),
    "Factor of the item tokens that the backbone reads; above 1 for pretrained weights.",
    added=True),
  "recommender.state_scale": Key(1.0, above_zero(),
    "Factor of the hidden states that score items; below 1 for pretrained weights.", added=True),
  "recommender.prompt.text": Key("", words("text that contains {items}, or empty"),
    "Prompt for a checkpoint's tokenizer, with {items} for the history; empty = learned vectors."),
  "recommender.prompt.length": Key(1, whole(1, 2**20),
    "Learned vectors before the history; 0 with a text, which sets it to its number of tokens."),
  "recommender.prompt.response": Key(0, whole(0, 2**20),
    "Learned tokens before each target; 0 = read at the last item, or as many as the text has."),
  "recommender.encoder": Key("tied", one_of("tied", "untied", "mlp"),
    "Items are read by the projections that score them, by separate ones, or by the paper's MLP."),
  "recommender.codes": Key("codebooks", one_of("codebooks", "random", "frozen", "none"),
    "Code tables: the codebooks at first, random at first, the frozen codebooks, or no tables."),
  "recommender.head": Key("rank", one_of("rank", "generate", "both"),
    "What is trained: scores of all items, the codes of the next item's semantic ID, or both.",
    added=True),
  "recommender.generate.modality": Key("text", words("a modality, or all"),
    "Modality whose codes are generated; all = the codes of all, level after level.", added=True),
  "recommender.generate.weight": Key(1.0, at_least(0),
    "Weight of the codes' loss beside that of ranking, where both are trained.", added=True),
  "recommender.fusion": Key("sum", one_of("frequency", "sum"),
    "Weights of the sources of a score: by an item's popularity (the paper's), or 1 for each."),
  "recommender.gate_temperature": Key(1.0, above_zero(),
    "Temperature of the softmax that gives the weights of fusion=frequency."),
  "recommender.whiten": Key(128, whole(0),
    "Principal directions kept of each feature table, whitened; 0 = tables and codes as they are."),
  "recommender.whiten_std": Key(0.04, above_zero(),
    "Standard deviation of whitened tables and, with them, of code tables."),
  "recommender.targets_per_user": Key(0, whole(0),
    "Train on only this many of the last targets of a user; 0 = on all."),
  "recommender.targets_per_piece": Key(0, whole(0),
    "Targets of a user that share a history in a batch; 0 = all of them, 1 = shuffled samples."),
  "recommender.softmax_chunk": Key(0, whole(0),
    "Items whose scores are held at a time; 0 = as many as 1 GiB holds. The result is the same."),
  "recommender.negatives": Key(0, whole(0, 2**24),
    "Sampled items that the softmax is over; 0 = all items, exact."),
  "recommender.as_new": Key(0.0, fraction(),
    "Share of items that a step treats as new, known by their content alone.", added=True),
  "recommender.microbatches": Key(1, whole(1, 2**16),
    "Batches whose gradients are added up for one step of the optimizer."),
  **batch_keys("recommender", rows=16, row_length=128, targets=2048, epochs=8),
  **optimizer_keys("recommender", 3e-3, 0.0, "cosine", warmup_steps=100),

  "blend.network": Key(True, true_or_false(),
    "Whether the network has a part in the blend; False = none, a control, still ranked again.",
    added=True),

  "evaluation.cutoffs": Key((5, 10, 20), list_of_whole(1),
    "Ranks at which metrics are cut, as in nDCG@10."),
  "evaluation.select": Key("nDCG@10", words("a metric at a cutoff, perhaps after unmasked/"),
    "Metric that selects the best epoch on validation; history masked, or with unmasked/ before."),
  "evaluation.targets": Key(256, whole(1, 2**24),
    "Users that are ranked in one batch."),
  "evaluation.beams": Key(50, whole(1, 10**6),
    "Width of the beam search where IDs are generated: prefixes kept on each level.", added=True),
  "evaluation.resamples": Key(1000, whole(0, 10**6),
    "Bootstrap samples of the 95 % intervals; 0 = no intervals."),

  "run.log_every": Key(20, whole(1),
    "Steps between two entries of the log."),
  "run.trackers": Key(("tensorboard",), some_of(*TRACKERS),
    "Where metrics are shown, beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.",
    added=True),
  "run.save_every": Key(200, whole(1),
    "Steps between two checkpoints."),
  "run.save_minutes": Key(10.0, at_least(0),
    "Minutes after which a checkpoint is written in any case; 0 = by steps only."),
  "run.keep": Key(2, whole(1),
    "Checkpoints that are kept, the newest; the older ones are for a damaged newest one."),
  **{
    f"run.steps_at_once.{stage}": Key(steps, whole(1, 2**16),
      "Steps that go to the device in one call; more than 1 where the call itself takes longer.")
    for stage, steps in {**dict.fromkeys((*TRAINED, *BASELINES), 1), "semantic_ids": 8}.items()
  },
  "run.compilation_cache": Key(True, true_or_false(),
    "Keep slow compilations in ~/.cache/mmesid_jax, or where JAX_COMPILATION_CACHE_DIR says."),
  "run.heartbeat_seconds": Key(30, whole(5, 86_400),
    "Silence after which one of several processes counts as lost."),

  **{
    f"mesh.{axis}": Key(default,
      Rule(lambda n: n == -1 or 1 <= n <= 2**20, "-1, or a number from 1 to 1,048,576"), meaning)
    for axis, default, meaning in zip(MESH_AXES, (1, -1, 1), (
      "Devices that share the rows of a batch, each with all weights; -1 = those that are left.",
      "Devices that share rows of a batch, weights and item tables; -1 = those that are left.",
      "Devices that share the weights and item tables of the same rows; -1 = those that are left.",
    ), strict=True)
  },

  "profile.steps": Key(0, whole(0),
    "Steps of each stage that are traced for a profiler, once it has settled; 0 = none."),
}
# fmt: on


def key_row(key: str) -> Key | None:
  """The table's row of a key; of features.NAME, which may have any name, that of a feature table.

  None for a key that does not exist.
  """
  section, _, name = key.partition(".")
  is_feature_table = section == "features" and is_modality_name(name)
  return KEYS.get(key) or (FEATURE_TABLE if is_feature_table else None)


def default_config(preset: str = "best") -> ConfigDict:
  """Every key with its default, at laptop sizes, changed by the preset. Raises UserError."""
  nested: dict[str, Any] = {}
  for key, row in KEYS.items():
    *sections, name = key.split(".")
    section = nested
    for part in sections:
      section = section.setdefault(part, {})
    section[name] = row.default
  config = ConfigDict(nested)
  apply_preset(config, preset)
  return config


def apply_preset(config: ConfigDict, preset: str) -> None:
  """Sets the choices in which the preset differs from the defaults; never sizes.

  Raises UserError for an unknown preset.
  """
  if preset not in PRESETS:
    raise UserError(f"preset {preset!r}: expected one of {', '.join(PRESETS)}")
  config.preset = preset
  config.update_from_flattened_dict(PRESETS[preset])


def add_modalities(config: object, keys: Sequence[str]) -> None:
  """Adds features.NAME, empty, for those of the keys that name a modality the config lacks.

  In a configuration of ablations it is base.features.NAME. Other sections take no new names.
  """
  base = config.get("base") if isinstance(config, ConfigDict) else None
  for prefix, holder in (("features.", config), ("base.features.", base)):
    features = holder.get("features") if isinstance(holder, ConfigDict) else None
    for name in (key.removeprefix(prefix) for key in keys if key.startswith(prefix)):
      if isinstance(features, ConfigDict) and is_modality_name(name) and name not in features:
        with features.unlocked():
          features[name] = FEATURE_TABLE.default


def flat_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
  """Yields the keys of sections and of leaves, with dots between levels."""
  for key, value in config.items(preserve_field_references=True):
    yield prefix + key
    if isinstance(value, ConfigDict):
      yield from flat_keys(value, f"{prefix}{key}.")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a.b.c": value} of nested mappings; tuples become lists, as JSON has them."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = list(value) if isinstance(value, tuple) else value
  return flat


def code_tokens(config: ConfigDict) -> int:
  """Tokens of a target's branch that spell its semantic ID: one a level, as a level of numbers may
  follow for items that share all others; 0 where no codes are generated."""
  if config.recommender.head == "rank":
    return 0
  spelled = coded_modalities(config.recommender.generate.modality, modalities(config))
  return config.semantic_ids.quantizer.levels * len(spelled)


def coded_modalities(choice: str, known: Iterable[str]) -> tuple[str, ...]:
  """The modalities whose codes make up an ID, for recommender.generate.modality = `choice`.

  known: those that have codes.
  """
  return tuple(sorted(known)) if choice == "all" else (choice,)


def modalities(config: ConfigDict) -> tuple[str, ...]:
  """The modalities that have a source, in the order of the configuration."""
  return tuple(m for m, source in config.features.items() if source)


def split_at(config: ConfigDict) -> tuple[float, float] | None:
  """The shares of interactions at which a temporal split cuts; None = leave-one-out."""
  return tuple(config.data.split_at) if config.data.split == "temporal" else None
