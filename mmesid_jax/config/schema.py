"""What a configuration holds, the three presets, and the check before anything heavy starts."""

import difflib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mmesid_jax.config.rules import FROM_EVENTS, PRESETS, RULES, RULES_BY_LAST_NAME, STAGES
from mmesid_jax.errors import UserError

RUN_KEYS = ("run", "mesh", "profile", "stages")  # may differ between two runs of one workdir
# Where things are may differ too: what they hold is compared by fingerprint.
LOCATIONS = ("data.dir", "recommender.backbone.checkpoint", "recommender.lora.start")

# Keys that came later: a workdir without them was made as their defaults say.
LATER_KEYS = {
  "data": ("split", "split_at"),
  "semantic_ids": ("bandwidths",),
  "recommender": ("as_new",),
}

ITEMS = "{items}"  # where the history's tokens stand in a prompt text
_TASK = "Given the user's purchase history, predict next possible item to be purchased."
_END = f" {ITEMS} <|eot_id|><|start_header_id|>assistant<|end_header_id|>"
PROMPTS = {
  # What the authors document.
  "paper": (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "You are a helpful AI assistant for recommendations<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{_TASK}{_END}"
  ),
  # What their code tokenises: the beginning is overwritten.
  "released_code": f"<|begin_of_text|>{{ {_TASK}{_END}",
}


def optimizer(learning_rate: float, weight_decay: float, **changes: Any) -> dict[str, Any]:
  """AdamW's keys; schedule is "cosine" or "constant", clip 0 = no clipping by global norm."""
  return {
    "learning_rate": learning_rate,
    "weight_decay": weight_decay,
    "schedule": "cosine",
    "warmup_steps": 100,
    "clip": 1.0,
    "b2": 0.999,
    **changes,
  }


def default_config(preset: str = "best") -> ConfigDict:
  """Every key there is, at laptop sizes. A preset sets choices, never sizes. Raises UserError."""
  config = ConfigDict(
    {
      "preset": preset,
      "seed": 0,
      "stages": STAGES,
      "data": {
        # data.dir holds sequences.txt; "tfds": or, there or below, a TensorFlow dataset of prepare;
        # "synthetic": made from data.synthetic
        "source": "files",
        "dir": "",
        # a user's last item is tested, the one before validates; "temporal": the first item from
        # two times on, by times.npy, and only what is before both trains
        "split": "leave_one_out",
        "split_at": (0.8, 0.9),  # the two times have so large shares of all interactions before
        "synthetic": {"num_users": 2000, "num_items": 600, "num_clusters": 24, "seed": 0},
      },
      # modality -> file in data.dir; "stage" = vectors of our own collaborative stage; "" = absent
      "features": {"collaborative": "stage", "text": "", "visual": ""},
      "collaborative": {
        "width": 128,
        "layers": 2,
        "heads": 2,
        "dropout": 0.5,
        "loss": "softmax",  # over all items; "bce": one sampled negative, the published baseline
        "rows": 32,
        "row_length": 64,
        "targets": 2048,
        "epochs": 14,
        "optimizer": optimizer(3e-3, 0.0),
      },
      "semantic_ids": {
        "hidden": (512, 512),
        # every table centred and divided by one number, its standard deviation
        "standardise": True,
        "quantizer": {
          # "rqvae": codebooks trained with the autoencoder; "kmeans": residual k-means of the
          # principal components, no training; "fsq": cells of a grid
          "kind": "rqvae",
          "levels": 4,
          "codes": 256,
          # k-means that the codebooks start from; "plain" or "random" otherwise
          "start": "balanced",
          "learning": "average",  # code vectors are moving averages; "gradient": by AdamW (paper)
          "average_rate": 0.1,
          "revival": 1.0,  # how fast unused codes are drawn to items, as a share of average_rate
          "commitment": 0.25,
          "sinkhorn_epsilon": 0.003,  # of the last level in training; 0 = nearest code there too
          "sinkhorn_iterations": 50,
        },
        "reconstruction": "mse",  # "mmd" (paper), or "both"
        # of MMD's kernels, Gaussians: the variance of each, in mean squared distances
        "bandwidths": (0.5,),
        "alignment": "info_nce",  # or "mmd", "none"
        "temperature": 0.1,
        "reconstruction_weight": 3.0,
        "quantisation_weight": 1.0,
        "alignment_weight": 0.01,
        "batch": 1024,
        "epochs": 20,
        "validate_every_epochs": 5,
        "optimizer": optimizer(2e-4, 1e-4, schedule="constant", warmup_steps=0),
      },
      "recommender": {
        "backbone": {
          "kind": "full",  # all weights trained; "lora": frozen with LoRA; "frozen"
          "checkpoint": "",  # a Hugging Face directory; "" = from scratch, of the sizes below
          "weights": "bfloat16",  # how frozen ones are kept: or "float32", "int8", "nf4"
          "compute": "float32",  # of activations; or "bfloat16"
          # activations are kept; "products": only what projections give, little is computed again;
          # "layers": only what enters a layer, all is: a third slower
          "remat": "none",
          "attention": "auto",  # what suits the device; or "xla", "cudnn" (NVIDIA), "splash" (TPU)
          "unroll": 1,  # layers compiled as one piece: more may be faster and compiles longer
        },
        "lora": {
          "rank": 8,
          "alpha": 16.0,
          "rslora": False,
          "dropout": 0.05,
          "targets": ("gate", "up", "down"),  # or "q", "k", "v", "out"
          "start": "",  # a PEFT directory to start from
        },
        # With a checkpoint, a size of 0 is the checkpoint's, and any other must be equal to it.
        "width": 128,
        "layers": 2,
        "heads": 2,
        "kv_heads": 2,
        "head_width": 64,
        "mlp_width": 256,
        "rope_theta": 500_000.0,
        "norm_eps": 1e-5,
        "dropout": 0.5,
        "item_dropout": 0.5,
        "prompt": {
          # With a checkpoint: text with {items}, cut by its tokenizer; then length and response
          # are 0, and become its numbers of tokens.
          "text": "",
          "length": 1,  # learned prompt vectors
          "response": 0,  # learned tokens behind every target; 0 = read at the token before it
        },
        # item token: "tied" = learned row + projected features (both score too) + codes;
        # "untied": features read through other projections than they score; "mlp": the paper's
        "encoder": "tied",
        # what code tables start from; or "random"; "frozen" = the codebooks, not trained; "none"
        "codes": "codebooks",
        # "sum": every source of a score weighs 1; "frequency": weights by an item's popularity, the
        # paper's fusion, by a softmax of this temperature
        "fusion": "sum",
        "gate_temperature": 1.0,
        # principal directions kept of every feature table, whitened to whiten_std, and code tables
        # scaled to the same; 0 = both as they are
        "whiten": 128,
        "whiten_std": 0.04,
        "targets_per_user": 0,  # only the last so many training targets; 0 = all
        # of a user that stay together in a batch, sharing their history; 0 = all, 1 = none do
        "targets_per_piece": 0,
        # the softmax is over all items; their scores are held for so many at a time (0 = for all
        # that 1 GiB takes), or it is over so many sampled items (0 = exact)
        "softmax_chunk": 0,
        "negatives": 0,
        # share of the items that a step reads and scores by content alone, as it will new ones
        "as_new": 0.0,
        "rows": 16,
        "row_length": 128,
        "targets": 2048,
        "microbatches": 1,  # batches whose gradients are added up for one step
        "epochs": 8,
        "optimizer": optimizer(3e-3, 0.0),
      },
      "evaluation": {
        "cutoffs": (5, 10, 20),
        "select": "nDCG@10",  # on validation, history masked; "unmasked/nDCG@10" for the other
        "targets": 256,
        "resamples": 1000,
      },
      "run": {
        "log_every": 20,
        # a checkpoint every so many steps, or minutes after the last (0 = by steps only)
        "save_every": 200,
        "save_minutes": 10.0,
        "keep": 2,  # how many are kept, for one that is damaged
        # steps that go to the device in one call, for those shorter than the call itself
        "steps_at_once": {"collaborative": 1, "semantic_ids": 8, "recommender": 1},
        # what is slow to compile is kept in the workdir, or where JAX_COMPILATION_CACHE_DIR says
        "compilation_cache": True,
        "heartbeat_seconds": 30,  # with several processes: silence after which one counts as lost
      },
      # Devices on every axis; -1 on one of them = all that the others leave. Rows of a batch are
      # cut by data and fsdp, weights by fsdp and tensor, tables of items by fsdp and tensor.
      "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
      "profile": {"steps": 0},  # steps a stage that are traced, once it has settled
    }
  )
  apply_preset(config, preset)
  return config


def apply_preset(config: ConfigDict, preset: str) -> None:
  """Sets the choices in which the paper, its released code and our best differ. Raises
  UserError."""
  if preset not in PRESETS:
    raise UserError(f"preset {preset!r}: expected one of {', '.join(PRESETS)}")
  if preset == "best":
    return  # the defaults
  r, s = config.recommender, config.semantic_ids
  r.encoder, r.codes, r.fusion, r.gate_temperature = "mlp", "codebooks", "frequency", 1e-3
  r.whiten, r.prompt.response, r.targets_per_user = 0, 4, 50
  r.optimizer.weight_decay = 0.0
  s.reconstruction, s.alignment = "mmd", "info_nce"
  s.standardise, s.quantizer.learning = False, "gradient"
  s.quantizer.start, s.quantizer.commitment = "balanced", 0.01
  if preset == "released_code":
    # An earlier commit aligns by MMD; its commitment weight is the alignment weight by accident.
    s.alignment, s.quantizer.commitment = "mmd", s.alignment_weight


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a.b.c": value} of nested mappings; tuples become lists, as JSON has them."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = list(value) if isinstance(value, tuple) else value
  return flat


def check(config: ConfigDict) -> None:
  """Raises UserError for the first value out of range, or for values that do not fit each other."""
  _check_checkpoint(config.recommender)  # without one, sizes of 0 would be blamed instead
  flat = flatten(config)
  for key, value in flat.items():
    rule = RULES.get(key) or RULES_BY_LAST_NAME.get(key.rsplit(".", 1)[-1])
    if rule and not rule[0](value):
      raise UserError(f"--config.{key}={value!r}: expected {rule[1]}")
  if config.data.source != "synthetic" and not config.data.dir:
    what = "the TensorFlow dataset" if config.data.source == "tfds" else "sequences.txt"
    raise UserError(f"--config.data.dir is not set: name the folder that holds {what}")
  if config.data.source == "synthetic" and config.data.split == "temporal":
    raise UserError(
      "--config.data.split=temporal: the synthetic catalogue has no times; take leave_one_out"
    )
  if not modalities(config):
    raise UserError("--config.features: every modality is empty; name at least one feature table")
  if config.recommender.as_new and modalities(config) == (FROM_EVENTS,):
    raise UserError(
      f"--config.recommender.as_new={config.recommender.as_new}: new items need content; name a "
      "table, such as --config.features.text"
    )
  _check_sizes(config)
  select = config.evaluation.select.removeprefix("unmasked/")
  known = [f"{m}@{k}" for m in ("HR", "nDCG", "MRR") for k in config.evaluation.cutoffs]
  if select not in known:
    by_small_letters = {name.lower(): name for name in known}
    near = difflib.get_close_matches(select.lower(), by_small_letters, 1, cutoff=0)
    raise UserError(
      f"--config.evaluation.select={config.evaluation.select}: no such metric at these cutoffs; "
      f"did you mean {by_small_letters[near[0]]}?"
    )


def _check_checkpoint(r: ConfigDict) -> None:
  if r.backbone.checkpoint:
    return
  if r.backbone.kind in ("lora", "frozen"):
    raise UserError(
      f"--config.recommender.backbone.kind={r.backbone.kind}: keeps pretrained weights; name "
      "their directory with --config.recommender.backbone.checkpoint"
    )
  if r.prompt.text:
    raise UserError(
      "--config.recommender.prompt.text: text is cut by a checkpoint's tokenizer; name its "
      "directory with --config.recommender.backbone.checkpoint, or leave the text empty"
    )


def _check_sizes(config: ConfigDict) -> None:
  c, r = config.collaborative, config.recommender
  if c.width % c.heads:
    raise UserError(
      f"--config.collaborative.heads={c.heads}: does not divide collaborative.width={c.width}"
    )
  if r.heads % r.kv_heads:
    raise UserError(
      f"--config.recommender.kv_heads={r.kv_heads}: does not divide recommender.heads={r.heads}"
    )
  if r.head_width % 2:
    raise UserError(
      f"--config.recommender.head_width={r.head_width}: rotary positions need it even"
    )
  if r.row_length <= r.prompt.response:
    raise UserError(
      f"--config.recommender.row_length={r.row_length}: must be above "
      f"prompt.response={r.prompt.response}"
    )


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """The configuration that workdir/config.json holds. Raises UserError for none, or another
  version's."""
  file = workdir / "config.json"
  if not file.is_file():
    raise UserError(f"{file}: no such file; name a folder that mmesid_jax.train wrote")
  try:
    config = ConfigDict(json.loads(file.read_text()))
  except (ValueError, AttributeError) as error:
    raise UserError(
      f"{file}: not a JSON object ({error}); delete it and run mmesid_jax.train again"
    ) from error
  for section in ("run", "mesh", "profile"):  # what may differ may also be missing
    config[section] = {**default_config()[section].to_dict(), **config.get(section, {})}
  for section, names in LATER_KEYS.items():
    defaults = {name: default_config()[section][name] for name in names}
    config[section] = {**defaults, **config.get(section, {})}
  different = flatten(config).keys() ^ flatten(default_config()).keys()
  if different := sorted(k for k in different if not k.startswith("features.")):
    raise UserError(
      f"{file}: written by another version of mmesid_jax: {different[0]} is on one side only"
    )
  return config


def modalities(config: ConfigDict) -> tuple[str, ...]:
  """The modalities that have a source, in the order of the configuration."""
  return tuple(m for m, source in config.features.items() if source)


def split_at(config: ConfigDict) -> tuple[float, float] | None:
  """Where a temporal split cuts, as `data.dataset.prepare` takes it; None = leave-one-out."""
  return tuple(config.data.split_at) if config.data.split == "temporal" else None


def identity(config: ConfigDict) -> dict[str, Any]:
  """The flat keys that two runs of one workdir must share."""
  flat = flatten(json.loads(config.to_json_best_effort()))
  return {
    key: value
    for key, value in flat.items()
    if key.split(".")[0] not in RUN_KEYS and key not in LOCATIONS
  }
