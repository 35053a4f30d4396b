"""What every single value of a configuration may be."""

from collections.abc import Callable, Mapping
from typing import Any

STAGES = ("collaborative", "semantic_ids", "recommender")
FROM_EVENTS = "collaborative"  # the modality that no item has before somebody met it
PRESETS = ("best", "paper", "released_code")
PROJECTIONS = ("q", "k", "v", "out", "gate", "up", "down")  # of a Llama block
MESH_AXES = ("data", "fsdp", "tensor")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")

Rule = tuple[Callable[[Any], bool], str]


def _at_least(low: float) -> Rule:
  return lambda x: x >= low, f"a number >= {low}"


def _fraction() -> Rule:
  return lambda x: 0 <= x < 1, "a number in [0, 1)"


def _above_zero() -> Rule:
  return lambda x: x > 0, "a number > 0"


def _one_of(*names: str) -> Rule:
  return lambda x: x in names, "one of " + ", ".join(names)


def _list_of(test: Callable[[Any], bool], text: str) -> Rule:
  return lambda x: len(x) > 0 and all(test(v) for v in x), text


RULES: Mapping[str, Rule] = {
  "preset": _one_of(*PRESETS),
  "seed": _at_least(0),
  "stages": _list_of(lambda s: s in STAGES, "a non-empty tuple out of " + ", ".join(STAGES)),
  "data.source": _one_of("files", "synthetic", "tfds"),
  "data.split": _one_of("leave_one_out", "temporal"),
  "data.split_at": (
    lambda x: len(x) == 2 and 0 < x[0] < x[1] < 1,
    "two shares of all interactions, 0 < first < second < 1",
  ),
  "data.synthetic.num_clusters": _at_least(1),
  "data.synthetic.num_items": _at_least(2),
  "data.synthetic.num_users": _at_least(1),
  "collaborative.loss": _one_of("softmax", "bce"),
  "semantic_ids.quantizer.kind": _one_of("rqvae", "kmeans", "fsq"),
  "semantic_ids.quantizer.start": _one_of("balanced", "plain", "random"),
  "semantic_ids.quantizer.learning": _one_of("average", "gradient"),
  "semantic_ids.quantizer.average_rate": (lambda x: 0 < x <= 1, "a number in (0, 1]"),
  "semantic_ids.quantizer.revival": (lambda x: 0 <= x <= 1, "a number in [0, 1]"),
  "semantic_ids.reconstruction": _one_of("mmd", "mse", "both"),
  "semantic_ids.bandwidths": _list_of(lambda x: x > 0, "a non-empty tuple of numbers > 0"),
  "semantic_ids.alignment": _one_of("info_nce", "mmd", "none"),
  "semantic_ids.hidden": _list_of(lambda n: n >= 1, "a non-empty tuple of widths"),
  "semantic_ids.batch": _at_least(2),
  "semantic_ids.quantizer.codes": _at_least(2),
  "semantic_ids.temperature": _above_zero(),
  "semantic_ids.quantizer.sinkhorn_epsilon": _at_least(0),
  "recommender.backbone.kind": _one_of("full", "lora", "frozen"),
  "recommender.backbone.weights": _one_of("float32", "bfloat16", "int8", "nf4"),
  "recommender.backbone.compute": _one_of("float32", "bfloat16"),
  "recommender.backbone.remat": _one_of("none", "products", "layers"),
  "recommender.backbone.attention": _one_of(*ATTENTIONS),
  "recommender.lora.alpha": _above_zero(),
  "recommender.lora.targets": _list_of(
    lambda name: name in PROJECTIONS, "a non-empty tuple out of " + ", ".join(PROJECTIONS)
  ),
  "recommender.encoder": _one_of("tied", "untied", "mlp"),
  "recommender.codes": _one_of("codebooks", "random", "frozen", "none"),
  "recommender.fusion": _one_of("frequency", "sum"),
  "recommender.gate_temperature": _above_zero(),
  "recommender.prompt.response": _at_least(0),
  "recommender.targets_per_user": _at_least(0),
  "recommender.targets_per_piece": _at_least(0),
  "recommender.softmax_chunk": _at_least(0),
  "recommender.negatives": _at_least(0),
  "recommender.as_new": _fraction(),
  "recommender.microbatches": _at_least(1),
  "recommender.whiten": _at_least(0),
  "recommender.whiten_std": _above_zero(),
  "recommender.rope_theta": _above_zero(),
  "recommender.norm_eps": _above_zero(),
  "evaluation.cutoffs": _list_of(lambda k: k >= 1, "a non-empty tuple of ranks >= 1"),
  "evaluation.resamples": _at_least(0),
  "run.save_minutes": _at_least(0),
  "run.keep": _at_least(1),
  **{f"run.steps_at_once.{stage}": _at_least(1) for stage in STAGES},
  **{f"mesh.{axis}": (lambda n: n == -1 or n >= 1, "-1 or a number >= 1") for axis in MESH_AXES},
  "run.heartbeat_seconds": _at_least(5),
  "profile.steps": _at_least(0),
}

# For every key of this name that RULES does not hold under its whole name.
RULES_BY_LAST_NAME: Mapping[str, Rule] = {
  **{
    name: _at_least(1)
    for name in (
      "width", "layers", "heads", "kv_heads", "head_width", "mlp_width", "length", "rank",
      "rows", "targets", "epochs", "levels", "batch", "validate_every_epochs",
      "sinkhorn_iterations", "log_every", "save_every", "unroll",
    )
  },
  "row_length": _at_least(2),
  "dropout": _fraction(),
  "item_dropout": _fraction(),
  "learning_rate": _above_zero(),
  "weight_decay": _at_least(0),
  "clip": _at_least(0),
  "warmup_steps": _at_least(0),
  "b2": (lambda x: 0 < x < 1, "a number in (0, 1)"),
  "schedule": _one_of("cosine", "constant"),
  "reconstruction_weight": _at_least(0),
  "quantisation_weight": _at_least(0),
  "alignment_weight": _at_least(0),
  "commitment": _at_least(0),
}  # fmt: skip
